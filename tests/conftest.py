"""One thread a process: tests run side by side, and two torch processes of two threads each fight over two cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start; read before torch is imported here

import torch

torch.set_num_threads(1)
