"""The sample application on Twisted's own reactor: `twisted_app.py PORT`."""

import sys

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

import shop


def pause(seconds):
    done = Deferred()
    reactor.callLater(seconds, done.callback, None)
    return done


async def handle(name, ms):
    if name in shop.STALLS:
        shop.STALLS[name](ms)
    elif name == "wait":
        await pause(ms / 1000)
    elif name == "to-thread":
        await deferToThread(shop.sleep, ms / 1000)
    elif name == "saturated":
        recount = shop.Recount(ms)
        for callback in recount.callbacks:
            reactor.callLater(0, callback, recount)


async def answer(request):
    ms = request.args.get(b"ms", [b"0"])[0]
    await handle(request.path.decode().strip("/"), int(ms))
    request.setHeader("Content-Length", "2")
    request.write(b"{}")
    request.finish()


class Shop(Resource):
    isLeaf = True

    def render_GET(self, request):
        ensureDeferred(answer(request))
        return NOT_DONE_YET


def start():
    ensureDeferred(shop.TRUTH.heartbeat(pause))
    shop.announce()


if __name__ == "__main__":
    reactor.listenTCP(int(sys.argv[1]), Site(Shop()), interface="127.0.0.1")
    reactor.callWhenRunning(start)
    reactor.run()
