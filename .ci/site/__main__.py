"""Build the site: `python .ci/site [OUT]`, into _docs/site. Notebooks are shown with their committed outputs, not run."""
import os
import shutil
import sys
from pathlib import Path
from time import perf_counter

from check import check
from sphinx.cmd.build import build_main
from stage import stage

here = Path(__file__).resolve().parent
top = Path(os.environ.get("SITE_OF", here.parent.parent))  # another repository of the same form


def main(out):
    start, source = perf_counter(), out.with_name("source")
    try: files = stage(top, source)
    except ValueError as error: return str(error)
    shutil.rmtree(out, ignore_errors=True)
    if build_main(["-q", "-W", "--keep-going", "-E", "-c", str(here), "-d", str(out.with_name("doctrees")), str(source), str(out)]):
        return "Sphinx warned: see above"
    for name in files:
        (out/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source/name, out/name)
    counted, problems = check(out)
    if problems: return "\n".join(problems)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {counted['pages']} pages, {counted['links']} links, {counted['players']} players of {counted['seconds']:.0f} s; "
          f"{size / 2**20:.1f} MiB in {perf_counter() - start:.0f} s")


sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else top/"_docs"/"site").resolve()))
