"""The sample application on tornado: `tornado_app.py PORT`."""

import asyncio
import sys

import tornado.web

import shop


class Stall(tornado.web.RequestHandler):
    async def get(self, kind):
        shop.STALLS[kind](int(self.get_argument("ms")))
        self.write({})


class Wait(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.sleep(int(self.get_argument("ms")) / 1000)
        self.write({})


class ToThread(tornado.web.RequestHandler):
    async def get(self):
        await asyncio.to_thread(shop.sleep, int(self.get_argument("ms")) / 1000)
        self.write({})


class Orders(tornado.web.RequestHandler):
    def get(self):
        self.write({"orders": [2041, 2042]})


async def main():
    app = tornado.web.Application(
        [("/", Orders), ("/wait", Wait), ("/to-thread", ToThread), ("/(.+)", Stall)],
        log_function=lambda handler: None,
    )
    app.listen(int(sys.argv[1]), "127.0.0.1")
    shop.announce()
    await shop.TRUTH.heartbeat()


if __name__ == "__main__":
    asyncio.run(main())
