"""A bucket on this machine: of Google's JSON API, what gcsfs and tensorstore ask for.

Objects have generations and writes may demand one, as in the real store; nothing is on a disk.
"""

import contextlib
import itertools
import json
import os
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$")
COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)$")
LISTING = re.compile(r"/storage/v1/b/([^/]+)/o/?$")
MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)$")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)$")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o/?$")


class Store:
    """Objects by (bucket, name): (generation, bytes)."""

    def __init__(self):
        self.objects, self.lock = {}, threading.Lock()
        self.generations, self.uploads = itertools.count(1), {}
        self.bucket_is_hidden = False  # as for an account with rights on objects alone

    def put(self, key, data, wanted=None):
        """The new generation; None if another than `wanted` is there (0 = none may be)."""
        with self.lock:
            if wanted is not None and self.generation(key) != int(wanted):
                return None
            generation = next(self.generations)
            self.objects[key] = (generation, data)
            return generation

    def generation(self, key):
        return self.objects.get(key, (0, b""))[0]

    def delete(self, key, wanted=None):
        """204, or the status of what went wrong."""
        with self.lock:
            if key not in self.objects:
                return 404
            if wanted is not None and self.generation(key) != int(wanted):
                return 412
            del self.objects[key]
            return 204


def about(key, generation, data):
    return {
        "kind": "storage#object",
        "bucket": key[0],
        "name": key[1],
        "generation": str(generation),
        "metageneration": "1",
        "size": str(len(data)),
        "contentType": "application/octet-stream",
        "storageClass": "STANDARD",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
        "etag": str(generation),
    }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    store: Store

    def handle(self):
        with contextlib.suppress(ConnectionError):  # children end as they like
            super().handle()

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        if isinstance(body, dict):
            body, headers = (
                json.dumps(body).encode(),
                {"Content-Type": "application/json", **headers},
            )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        names = lambda match: tuple(urllib.parse.unquote(g) for g in match.groups())  # noqa: E731
        if match := UPLOAD.match(url.path):
            return self.upload(names(match)[0], query, body)
        if match := COPY.match(url.path):
            return self.copy(names(match)[:2], names(match)[2:])
        if match := MOVE.match(url.path):
            bucket, source, target = names(match)
            self.copy((bucket, source), (bucket, target))
            return self.store.delete((bucket, source))
        if match := LISTING.match(url.path):
            return self.listing(names(match)[0], query)
        if match := BUCKET.match(url.path):
            return self.bucket(names(match)[0])
        if match := OBJECT.match(url.path):
            return self.object(names(match), query)
        return self.answer(404, {"error": {"code": 404}})

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_one

    def bucket(self, name):
        if self.store.bucket_is_hidden:
            return self.answer(403, {"error": {"code": 403, "message": "no storage.buckets.get"}})
        return self.answer(200, {"kind": "storage#bucket", "name": name, "id": name})

    def object(self, key, query):
        if self.command == "DELETE":
            status = self.store.delete(key, query.get("ifGenerationMatch"))
            return self.answer(status, b"" if status == 204 else {"error": {"code": status}})
        generation, data = self.store.objects.get(key, (0, b""))
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self.answer(412, {"error": {"code": 412}})
        if not generation:
            return self.answer(404, {"error": {"code": 404}})
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        if query.get("alt") != "media":
            return self.answer(200, about(key, generation, data))
        marks = {"x_goog_generation": generation, "Content_Type": "application/octet-stream"}
        if not (span := re.match(r"bytes=(\d*)-(\d*)$", self.headers.get("Range", ""))):
            return self.answer(200, data, **marks)
        size = len(data)
        if span[1]:
            first, last = int(span[1]), min(int(span[2] or size - 1), size - 1)
        else:
            first, last = max(0, size - int(span[2])), size - 1
        if first >= size:
            return self.answer(416, Content_Range=f"bytes */{size}")
        part = data[first : last + 1]
        return self.answer(206, part, Content_Range=f"bytes {first}-{last}/{size}", **marks)

    def copy(self, source, target):
        if source not in self.store.objects:
            return self.answer(404, {"error": {"code": 404}})
        data = self.store.objects[source][1]
        made = about(target, self.store.put(target, data), data)
        return self.answer(200, {"done": True, "resource": made, **made})

    def listing(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        low, high = query.get("startOffset", ""), query.get("endOffset")
        items, folders = [], set()
        for key, (generation, data) in sorted(self.store.objects.copy().items()):
            name = key[1]
            if key[0] != bucket or not name.startswith(prefix) or name < low:
                continue
            if high is not None and name >= high:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(about(key, generation, data))
        self.answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

    def upload(self, bucket, query, body):
        kind, wanted = query.get("uploadType"), query.get("ifGenerationMatch")
        if "upload_id" in query:  # the next piece of a resumable one
            key, wanted, before = self.store.uploads[query["upload_id"]]
            data = before + body
            span = re.match(r"bytes (\d+|\*)(?:-(\d+))?/(\d+|\*)", self.headers["Content-Range"])
            if span and span[3] == "*":
                self.store.uploads[query["upload_id"]] = (key, wanted, data)
                return self.answer(308, Range=f"bytes=0-{len(data) - 1}")
            return self.created(key, data, wanted)
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            mark = str(next(self.store.generations))
            self.store.uploads[mark] = ((bucket, name), wanted, b"")
            host = self.headers["Host"]
            where = f"http://{host}/upload/storage/v1/b/{bucket}/o?upload_id={mark}"
            return self.answer(200, Location=where)
        if kind == "multipart":
            _, meta, data = body.split(b"\n\n", 2)  # as gcsfs writes it
            name = json.loads(meta.partition(b"\n--==0==")[0])["name"]
            data = data.removesuffix(b"\n--==0==--")
            return self.created((bucket, name), data, wanted)
        return self.created((bucket, query["name"]), body, wanted)

    def created(self, key, data, wanted):
        generation = self.store.put(key, data, wanted)
        if generation is None:
            return self.answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        return self.answer(200, about(key, generation, data))


def serve(port=0):
    """A running server: (port, store, function that ends it)."""
    store = Store()
    handler = type("Bound", (Handler,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1], store, server.shutdown


def environment(port):
    """What makes gcsfs and tensorstore of a child process go there, without credentials."""
    url = f"http://127.0.0.1:{port}"
    proxies = {k: "" for k in os.environ if k.lower().endswith("_proxy")}
    return {
        **proxies,
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCE_METADATA_HOST": "127.0.0.1:1",
    }
