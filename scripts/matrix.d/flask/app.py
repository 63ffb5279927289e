import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    return f"pid={os.getpid()}\n"


@app.get("/held/<name>")
def held(name):
    with open(os.path.join(os.environ["GATES"], name)) as gate:
        gate.read()
    return f"pid={os.getpid()}\n"
