"""Run BasicSR's training loop with QuantFace registered: python basicsr/train.py -opt FILE.yml"""

from pathlib import Path

from quantface_arch.launch import launch

if __name__ == "__main__":
    launch("train", Path(__file__).resolve().parents[1])
