"""Build the site: `python .ci/site [OUT]`, by default into _docs/site.

Notebooks are shown with their committed outputs, not run. SITE_OF names another repository of this form.
"""
import os
import shutil
import sys
from pathlib import Path
from time import perf_counter

from check import check
from sphinx.cmd.build import build_main
from stage import stage

here = Path(__file__).resolve().parent
top = Path(os.environ.get("SITE_OF", here.parent.parent))


def main(out):
    start, source = perf_counter(), out.with_name("source")
    try: files = stage(top, source)
    except ValueError as error: return str(error)
    shutil.rmtree(out, ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-E", "-c", str(here), "-d", str(out.with_name("doctrees"))]
    if build_main([*options, str(source), str(out)]): return "Sphinx warned of what stands above"
    for name in files:
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source/name, out/name)
    counted, problems = check(out)
    if problems: return "\n".join(problems)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20
    print(f"{out}: {counted['pages']} pages, {counted['links']} links, {counted['players']} players of "
          f"{counted['seconds']:.0f} s; {size:.1f} MiB in {perf_counter() - start:.0f} s")


sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else top/"_docs"/"site").resolve()))
