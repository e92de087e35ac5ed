"""What users of testcontainers do: a server for the time of a test, and a database for one."""

import urllib.request

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.waiting_utils import wait_for_logs
from testcontainers.postgres import PostgresContainer

page = "mkdir /www && echo a page > /www/index.html && echo serving && exec busybox httpd -f -p 80 -h /www"
with Network() as network:
    server = DockerContainer("bb").with_command(["sh", "-c", page]).with_exposed_ports(80)
    with server.with_network(network).with_network_aliases("server") as server:
        wait_for_logs(server, "serving", timeout=60)
        address = f"http://{server.get_container_host_ip()}:{server.get_exposed_port(80)}/"
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == b"a page\n"
        code, said = server.exec(["sh", "-c", "busybox wget -qO- http://server/"])
        assert (code, said) == (0, b"a page\n"), (code, said)

with PostgresContainer("shop-database", username="postgres", password="secret", dbname="shop", driver=None) as database:
    code, said = database.exec(["psql", "-U", "postgres", "-tAc", "SELECT 6 * 7", "shop"])
    assert (code, said) == (0, b"42\n"), (code, said)
    assert database.get_connection_url().startswith("postgresql://postgres:secret@"), database.get_connection_url()
print("done")
