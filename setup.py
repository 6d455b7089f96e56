"""Build the package from settings.ini, the one place that holds its name, version and requirements."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(here/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
readme = here/"README.md"

extras = {name: cfg[f"{name}_requirements"].split() for name in ("train", "data", "eval", "eeg", "bids", "browser", "site", "dev")}
extras["all"] = sorted({req for name in ("train", "data", "eval", "eeg", "bids") for req in extras[name]})

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license_expression=cfg["license"],
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research",
                 "Programming Language :: Python :: 3", "Topic :: Multimedia :: Sound/Audio"],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={cfg["lib_path"]: ["**/*.json", "**/*.safetensors", "**/*.md"]},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
