"""What the Python SDK's users do, on the engine that DOCKER_HOST names; without networks."""

import io
import tarfile

import docker

client = docker.from_env(version="auto")
assert client.ping()
assert client.version()["Platform"]["Name"] == "orlop" or client.version()["Components"]
assert client.info()["OSType"] == "linux"

# Containers: run, wait, logs, exec, stats, archives, commit.
assert client.containers.run("bb", ["echo", "hello"], remove=True, network_mode="none") == b"hello\n"
try:
    client.containers.run("bb", ["sh", "-c", "echo wrong >&2; exit 3"], remove=True, network_mode="none")
    raise AssertionError("an exit code of 3 is an error")
except docker.errors.ContainerError as error:
    assert error.exit_status == 3 and b"wrong" in error.stderr, error
container = client.containers.run(
    "bb",
    ["sh", "-c", "trap 'exit 7' TERM; echo started; while :; do sleep 0.1; done"],
    detach=True,
    name="sdk",
    network_mode="none",
    labels={"made-by": "sdk"},
    environment={"A": "1"},
    mem_limit="64m",
)
for line in container.logs(stream=True, follow=True):
    assert line == b"started\n"
    break
container.reload()
assert container.status == "running"
assert [found.name for found in client.containers.list(filters={"label": "made-by=sdk"})] == ["sdk"]
code, output = container.exec_run(["sh", "-c", "echo $A; echo other >&2; exit 4"], demux=True)
assert code == 4 and output == (b"1\n", b"other\n"), (code, output)
assert container.exec_run("id -u", user="1000").output == b"1000\n"
assert container.stats(stream=False)["memory_stats"]["limit"] == 64 << 20
assert "sh" in str(container.top())
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as files:
    entry = tarfile.TarInfo("given")
    entry.size = 5
    files.addfile(entry, io.BytesIO(b"given"))
assert container.put_archive("/tmp", archive.getvalue())
pieces, about = container.get_archive("/tmp/given")
with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as files:
    assert files.extractfile("given").read() == b"given" and about["size"] == 5
assert any(change["Path"] == "/tmp/given" for change in container.diff())
image = container.commit(repository="sdk-made", tag="1", changes="ENV B=2")
assert "B=2" in image.attrs["Config"]["Env"]
container.stop(timeout=10)
assert container.wait()["StatusCode"] == 7
container.rename("renamed")
container.remove()
try:
    client.containers.get("renamed")
    raise AssertionError("it is gone")
except docker.errors.NotFound:
    pass

# Standard input of an attached container.
reader = client.api.create_container(
    "bb", ["cat"], stdin_open=True, host_config=client.api.create_host_config(network_mode="none")
)
socket = client.api.attach_socket(reader, params={"stdin": 1, "stdout": 1, "stream": 1})
client.api.start(reader)
raw = getattr(socket, "_sock", socket)
raw.sendall(b"to and fro\n")
assert raw.recv(8)[0] == 1
assert raw.recv(100) == b"to and fro\n"
socket.close()
client.api.remove_container(reader, force=True)

# Images: build, tag, history, save, load, remove.
dockerfile = b"FROM bb\nARG X=no\nRUN echo $X > /x\nLABEL l=m\nCMD [\"cat\", \"/x\"]\n"
image, lines = client.images.build(fileobj=io.BytesIO(dockerfile), tag="sdk-built", buildargs={"X": "yes"}, rm=True)
assert any("Successfully tagged" in line.get("stream", "") for line in lines)
assert image.labels == {"l": "m"}
assert client.containers.run("sdk-built", remove=True, network_mode="none") == b"yes\n"
try:
    client.images.build(fileobj=io.BytesIO(b"FROM bb\nRUN false\n"))
    raise AssertionError("a build that fails is an error")
except docker.errors.BuildError as error:
    assert "returned a non-zero code: 1" in error.msg, error
assert image.tag("sdk-again", "2")
assert len(image.history()) >= 3
saved = b"".join(image.save())
client.images.remove("sdk-again:2")
client.images.remove("sdk-built")
assert client.images.load(saved)[0].id == image.id
client.images.remove(image.id, force=True)
client.images.remove("sdk-made:1")
try:
    client.images.get("sdk-built")
    raise AssertionError("it is gone")
except docker.errors.ImageNotFound:
    pass

# Volumes and networks.
volume = client.volumes.create("sdk-volume", labels={"k": "v"})
mount = {"sdk-volume": {"bind": "/v", "mode": "rw"}}
client.containers.run("bb", ["touch", "/v/kept"], remove=True, network_mode="none", volumes=mount)
assert client.containers.run("bb", ["ls", "/v"], remove=True, network_mode="none", volumes=mount) == b"kept\n"
assert [found.name for found in client.volumes.list(filters={"label": "k=v"})] == ["sdk-volume"]
volume.remove()
network = client.networks.create("sdk-network", driver="bridge")
assert network.name in [found.name for found in client.networks.list()]
network.remove()

# Events, of all of this.
seen = {(event["Type"], event["Action"]) for event in client.events(since=0, until=int(__import__("time").time()) + 1, decode=True)}
assert ("volume", "destroy") in seen and ("container", "die") in seen, seen
for container in client.containers.list(all=True):
    container.remove(force=True)
client.images.prune()
print("done")
