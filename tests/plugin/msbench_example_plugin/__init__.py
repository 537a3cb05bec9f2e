"""A plugin for msbench: one defense and one attack, each in a file that also works on its own."""
