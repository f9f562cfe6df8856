"""A real S3 server for tests: OpenStack Swift with s3api, four processes on loopback, up in about a second.

They die with the test process, and are stopped by their ids. Each test takes a bucket of its own.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
import requests
from obstore.store import S3Store

from kyb_backup_pipeline.engine import process
from kyb_backup_pipeline.sandbox.cluster import free_port
from kyb_backup_pipeline_tests.running import wait_until

KEY, SECRET = "test:tester", "a-secret-that-is-in-no-log"
_RINGS = """
import sys
from swift.common.ring import RingBuilder
root, *servers = sys.argv[1:]
for server in servers:
    name, port = server.split("=")
    builder = RingBuilder(0, 1, 0)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk",
                     "replication_ip": "127.0.0.1", "replication_port": int(port), "weight": 1, "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{root}/{name}.ring.gz")
"""
_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {root}
devices = {root}/devices
mount_check = false
disable_fallocate = true
log_level = ERROR
"""
_STORAGE = """[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY = """[pipeline:main]
pipeline = catch_errors listing_formats s3api tempauth bulk slo container-quotas proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:container-quotas]
use = egg:swift#container_quotas
"""
_buckets = itertools.count()
_MINUTES = timedelta(minutes=5)


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    port: int
    container_port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> "Bucket":
        """A new bucket."""
        bucket = Bucket(self, f"bucket-{os.getpid()}-{next(_buckets)}")
        url = obstore.sign(bucket.whole, "PUT", "", _MINUTES)
        requests.put(url, timeout=30).raise_for_status()
        return bucket


@dataclass(frozen=True)
class Bucket:
    """A bucket, and what tests do there behind the back of the pipeline."""

    server: S3Server
    name: str

    @property
    def whole(self) -> S3Store:
        return _store(self.server.endpoint, self.name)

    def environment(self, **changes: str) -> dict[str, str]:
        """Variables that make it the off-site place."""
        return {
            "KYB_OFFSITE__URL": f"s3://{self.name}/kyb",
            "KYB_OFFSITE__ENDPOINT": self.server.endpoint,
            "KYB_OFFSITE__ALLOW_HTTP": "true",
            "KYB_OFFSITE__ACCESS_KEY_ID": KEY,
            "KYB_OFFSITE__SECRET_ACCESS_KEY": SECRET,
            "KYB_OFFSITE__RETRIES": "4",
            **{f"KYB_OFFSITE__{name.upper()}": value for name, value in changes.items()},
        }

    def table(self) -> str:
        """The same as a table of a settings file."""
        return f"""[offsite]
url = "s3://{self.name}/kyb"
endpoint = "{self.server.endpoint}"
allow_http = true
access_key_id = "{KEY}"
secret_access_key = "{SECRET}"
"""

    def objects(self, below: str = "kyb") -> list[str]:
        return sorted(m["path"] for chunk in obstore.list(self.whole, below) for m in chunk)

    def read(self, key: str) -> bytes:
        return bytes(obstore.get(self.whole, key).bytes())

    def write(self, key: str, content: bytes) -> None:
        obstore.put(self.whole, key, content, use_multipart=False)

    def delete(self, *keys: str) -> None:
        obstore.delete(self.whole, list(keys))

    def limit(self, size: int) -> None:
        """Let the bucket hold so many bytes at most."""
        # to the container server itself: a token for the proxy would take a memcached
        url = f"http://127.0.0.1:{self.server.container_port}/disk/0/AUTH_test/{self.name}"
        headers = {
            "X-Timestamp": f"{time.time():016.5f}",
            "X-Container-Meta-Quota-Bytes": str(size),
        }
        requests.post(url, headers=headers, timeout=30).raise_for_status()


def _store(endpoint: str, bucket: str) -> S3Store:
    return S3Store(bucket, endpoint=endpoint, region="us-east-1", access_key_id=KEY,
                   secret_access_key=SECRET, client_options={"allow_http": True})  # fmt: skip


@contextlib.contextmanager
def running_s3_server(root: Path) -> Iterator[S3Server]:
    """The server for the block, with its data below ``root``."""
    names = ("account", "container", "object", "proxy")
    ports = {name: free_port() for name in names}
    (root / "devices" / "disk").mkdir(parents=True)
    _configure(root, ports)
    servers = [f"{name}={ports[name]}" for name in names[:3]]
    process.run([sys.executable, "-c", _RINGS, root, *servers], deadline=60, env=_inherited())
    with contextlib.ExitStack() as stack:
        for name in names:
            program = shutil.which(f"swift-{name}-server", path=str(Path(sys.executable).parent))
            assert program is not None, "swift is not installed: requirements.txt has it"
            log = stack.enter_context(open(root / f"{name}.log", "wb"))
            argv: list[str | Path] = [sys.executable, program, root / f"{name}.conf"]
            stack.enter_context(process.start(argv, stdout=log, stderr=log, env=_inherited()))
        for name in names:
            wait_until(lambda port=ports[name]: _listens(port), f"{name} server")  # type: ignore[misc]
        yield S3Server(ports["proxy"], ports["container"])


def _configure(root: Path, ports: Mapping[str, int]) -> None:
    (root / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    user = pwd.getpwuid(os.getuid()).pw_name
    for name, port in ports.items():
        text = _COMMON.format(port=port, user=user, root=root)
        text += _PROXY.format(secret=SECRET) if name == "proxy" else _STORAGE.format(name=name)
        (root / f"{name}.conf").write_text(text)


def _inherited() -> dict[str, str]:
    """What a child of ours needs to find our packages where they are not installed."""
    return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
