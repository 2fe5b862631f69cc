"""Run BasicSR's test loop with QuantFace registered: python basicsr/test.py -opt FILE.yml"""

from pathlib import Path

from quantface_arch.launch import launch

if __name__ == "__main__":
    launch("test", Path(__file__).resolve().parents[1])
