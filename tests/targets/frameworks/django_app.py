"""The sample application on Django, for servers of ASGI: `daphne django_app:application`."""

import asyncio

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path

import shop

settings.configure(
    ALLOWED_HOSTS=["*"],
    # Says how long an answer is.
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="sample",
)
HEARTBEATS = []


async def stall(request, kind):
    shop.STALLS[kind](int(request.GET["ms"]))
    return JsonResponse({})


async def wait(request):
    await asyncio.sleep(int(request.GET["ms"]) / 1000)
    return JsonResponse({})


def to_thread(request):
    shop.sleep(int(request.GET["ms"]) / 1000)
    return JsonResponse({})


async def list_orders(request):
    # daphne knows no lifespan.
    if not HEARTBEATS:
        HEARTBEATS.append(asyncio.create_task(shop.TRUTH.heartbeat()))
        shop.announce()
    return JsonResponse({"orders": [2041, 2042]})


urlpatterns = [
    path("", list_orders),
    path("wait", wait),
    path("to-thread", to_thread),
    path("<kind>", stall),
]
application = get_asgi_application()
