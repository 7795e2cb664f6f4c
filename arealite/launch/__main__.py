"""python -m arealite.launch --config x.yaml [--check] [section.key=value ...]"""

from arealite.launch.command import launch


def main() -> None:
    launch()


if __name__ == "__main__":
    main()
