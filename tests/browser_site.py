"""Open every page of a site in a headless browser: `python browser_site.py SITE WIDTH [PICTURES [PAGE ...]]`.

It prints one line of JSON a page. A program of its own, as `browser.py`, which opens one page and plays it.
It needs the extra `browser` (Qt's Chromium).
"""
import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"

from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

# what is wider than the page and lies in nothing that scrolls
STATE = """(() => {
  const audio = [...document.querySelectorAll('audio')], root = document.documentElement;
  audio.forEach(a => { a.preload = 'metadata'; });
  const images = [...document.images], formulas = document.querySelector('.math');
  const waiting = audio.some(a => !a.error && a.readyState < 1)
    || images.some(i => i.loading !== 'lazy' && !i.complete)
    || !!formulas && !document.querySelector('mjx-container');
  const scrolls = e => e && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
  const sticksOut = e => e.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(e);
  const wide = [...document.querySelectorAll('main *')].filter(sticksOut);
  return JSON.stringify({
    waiting, inner: root.clientWidth, scroll: root.scrollWidth,
    durations: audio.map(a => a.error ? a.error.message : a.duration),
    broken: images.filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 100)),
    wide: wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120)),
  });
})()"""
PATIENCE = 200  # looks at a page, one every 100 ms


class Page(QWebEnginePage):
    def javaScriptConsoleMessage(self, level, message, line, source): messages.append(message)


class Requests(QWebEngineUrlRequestInterceptor):
    def interceptRequest(self, info):
        url = info.requestUrl()
        if url.scheme() not in ("data", "file", "blob"): requests.append(url.toString())


def open_next():
    if not pages: app.quit(); return
    messages.clear(), requests.clear(), looks.clear()
    view.load(QUrl.fromLocalFile(str(pages[0])))


def look(): page.runJavaScript(STATE, 0, seen)


def seen(answer):
    state = json.loads(answer) if answer else {"waiting": True}
    looks.append(state)
    if state["waiting"] and len(looks) < PATIENCE: QTimer.singleShot(100, look)
    else: QTimer.singleShot(500 if pictures else 0, lambda: tell(state))


def tell(state):
    path = pages.pop(0).relative_to(site)
    name = path.with_suffix("").as_posix().replace("/", "-")
    if pictures: view.grab().save(str(pictures/f"{name}-{width}.png"))
    print(json.dumps({"page": str(path)} | state | {"messages": messages, "requests": requests}), flush=True)
    open_next()


messages, requests, looks = [], [], []
site, width, pictures = Path(sys.argv[1]).resolve(), int(sys.argv[2]), None
if len(sys.argv) > 3: pictures = Path(sys.argv[3])
pages = [site/name for name in sys.argv[4:]]
pages = pages or sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
app = QApplication(sys.argv[:1])
view = QWebEngineView()
page, watch = Page(view), Requests()
page.setUrlRequestInterceptor(watch)
view.setPage(page)
view.resize(width, 900)
view.show()
page.loadFinished.connect(lambda loaded: look() if loaded else app.exit(1))
open_next()
sys.exit(app.exec())
