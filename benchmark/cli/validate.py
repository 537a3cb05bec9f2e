"""``msbench validate``: the contract suite that the built-ins pass, on a component of one's own."""

import json
from dataclasses import asdict

import click

from .options import json_option, verbose_option


@click.command()
@click.argument("kind", type=click.Choice(["defense", "attack"]))
@click.argument("spec")
@json_option
@verbose_option
@click.pass_context
def validate(ctx: click.Context, kind: str, spec: str, as_json: bool) -> None:
    """Check that a defense or an attack keeps its contract.

    SPEC is NAME, FILE.py:CLASS or package.module:CLASS, with :key=value,key=value if needed. Exits with 1 if
    a check fails.
    """
    from ..validate_attack import validate_attack
    from ..validate_defense import validate_defense

    checks = validate_defense(spec) if kind == "defense" else validate_attack(spec)
    failed = sum(not check.passed for check in checks)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        for check in checks:
            click.echo(f"{'ok    ' if check.passed else 'FAILED'}  {check.name}{_remark(check.detail)}")
        click.echo(f"\n{spec}: {len(checks) - failed} of {len(checks)} checks passed")
    ctx.exit(1 if failed else 0)


def _remark(detail: str) -> str:
    return f": {detail}" if detail else ""
