"""Packaging of hiccap: everything is read from settings.ini, which nbdev uses too."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=['='])
parser.read('settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license='Apache-2.0', license_files=['LICENSE'],
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Science/Research',
                 *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13))],
    packages=find_packages(include=['hiccap', 'hiccap.*']),
    package_data={'hiccap': ['schemas/*.json', 'review/*']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={k: cfg[f'{k}_requirements'].split()
                    for k in ('dev', 'export', 'ray', 'video', 'wheels', 'speech', 'ocr', 'fiftyone')},
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown',
    entry_points={'console_scripts': cfg.get('console_scripts', '').split(),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    zip_safe=False)
