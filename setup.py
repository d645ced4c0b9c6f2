"Hand the package lists of settings.ini to setuptools; everything else about the package is in pyproject.toml"
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

settings = ConfigParser()
settings.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')


def packages(name):
    "The packages listed under `name`"
    return settings['DEFAULT'][name].split()


setup(
    install_requires=packages('requirements'),
    extras_require={extra: packages(f'{extra}_requirements') for extra in ('learn', 'dev')},
)
