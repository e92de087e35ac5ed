"""A shop with one article: POST orders it, GET tells what is in the database and in the cache, and /open that it is there."""

import http.server
import os

import psycopg2
import redis

cache = redis.Redis(os.environ["CACHE"])


def database():
    connection = psycopg2.connect(os.environ["DATABASE"])
    connection.autocommit = True
    return connection


def state():
    connection = database()
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM orders")
    text = f"{cursor.fetchone()[0]} orders, {int(cache.get('clicks') or 0)} clicks\n"
    connection.close()
    return text.encode()


class Page(http.server.BaseHTTPRequestHandler):
    def answer(self):
        text = b"open\n" if self.path == "/open" else state()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = answer

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        connection = database()
        connection.cursor().execute("INSERT INTO orders DEFAULT VALUES")
        connection.close()
        cache.incr("clicks")
        self.answer()


connection = database()
connection.cursor().execute("CREATE TABLE IF NOT EXISTS orders (number serial)")
connection.close()
print("the shop is open")
http.server.ThreadingHTTPServer(("", 80), Page).serve_forever()
