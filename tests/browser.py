"""Open a page in a headless browser and print what it says of itself, as JSON: `python browser.py PAGE WIDTH [PICTURE]`.

A program of its own, because a browser that dies takes its process along. It needs the extra `browser` (Qt's Chromium).
"""
import json
import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu --autoplay-policy=no-user-gesture-required"

from PySide6.QtCore import QTimer, QUrl
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

STATE = """(() => {
  const audio = [...document.querySelectorAll('audio')], images = [...document.images], root = document.documentElement;
  const waiting = audio.some(a => !a.error && a.readyState < 1) || images.some(i => !i.complete);
  return JSON.stringify({
    waiting, title: document.title, lang: root.lang, inner: innerWidth, scroll: root.scrollWidth,
    audio: audio.map(a => ({id: a.id, duration: a.duration, volume: a.volume, muted: a.muted, error: a.error && a.error.message, width: a.clientWidth})),
    images: images.map(i => i.naturalWidth), dark: matchMedia('(prefers-color-scheme: dark)').matches,
  });
})()"""
PLAY = """(async () => {  // two players one after the other, then a link
  const [a, b] = document.querySelectorAll('audio'), link = document.querySelector('figcaption a');
  const aim = document.getElementById(link.hash.slice(1)), on = x => new Promise(done => x.addEventListener('playing', done, {once: true}));
  const told = {};
  await a.play(); told.first = !a.paused; await b.play(); told.stopped = a.paused; told.second = !b.paused;
  aim.pause(); const played = on(aim); link.click(); await played;
  told.link = !aim.paused && location.hash === ''; told.alone = [...document.querySelectorAll('audio')].filter(p => !p.paused).length;
  document.querySelectorAll('audio').forEach(p => p.pause()); window.told = told;
})().catch(error => { window.told = {error: String(error)}; })"""
LIMIT = 60_000  # milliseconds


class Page(QWebEnginePage):
    def javaScriptConsoleMessage(self, level, message, line, source): messages.append(message)


class Requests(QWebEngineUrlRequestInterceptor):
    def interceptRequest(self, info):
        if info.requestUrl().scheme() != "data": requests.append(info.requestUrl().toString())


messages, requests, state = [], [], {}
path, width = Path(sys.argv[1]).resolve(), int(sys.argv[2])
app = QApplication(sys.argv[:1])
view = QWebEngineView()
page, watch = Page(view), Requests()
page.setUrlRequestInterceptor(watch)
view.setPage(page)
view.resize(width, 900)
view.show()


def look(): page.runJavaScript(STATE, 0, seen)


def seen(answer):
    state.update(json.loads(answer) if answer else {"waiting": True})
    if state["waiting"]: QTimer.singleShot(100, look)
    else: page.runJavaScript(PLAY, 0, lambda _: QTimer.singleShot(100, heard))


def heard(): page.runJavaScript("JSON.stringify(window.told || null)", 0, told)


def told(answer):
    state["played"] = json.loads(answer) if answer else None
    if state["played"] is None: QTimer.singleShot(100, heard)
    elif len(sys.argv) > 3: page.runJavaScript("scrollTo(0, 0)", 0, lambda _: QTimer.singleShot(500, finish))
    else: finish()


def finish():
    if len(sys.argv) > 3: view.grab().save(sys.argv[3])
    print(json.dumps(state | {"messages": messages, "requests": requests}))
    app.quit()


page.loadFinished.connect(lambda loaded: look() if loaded else app.exit(1))
QTimer.singleShot(LIMIT, lambda: app.exit(2))
view.load(QUrl.fromLocalFile(str(path)))
sys.exit(app.exec())
