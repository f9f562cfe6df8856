"""Stop and start the sample platform's HTTP service, as ``systemctl`` would a real one.

python -m kyb_backup_pipeline.sandbox.service stop|start --root .kyb
"""

import argparse
from pathlib import Path

from kyb_backup_pipeline.sandbox.place import find_place
from kyb_backup_pipeline.sandbox.services import start_platform_service, stop_platform_service


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description="Stop and start the sample platform's service.")
    parser.add_argument("what", choices=("stop", "start"))
    parser.add_argument("--root", type=Path, required=True, help="the sandbox")
    options = parser.parse_args()
    place = find_place(options.root)
    if options.what == "stop":
        stop_platform_service(place)
    else:
        start_platform_service(place)


if __name__ == "__main__":
    main()
