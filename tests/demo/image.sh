# An OCI image archive by hand, and a registry for it.

# blob FILE: moves it to where its digest says; prints digest and size.
blob() {
  local digest size
  digest=$(sha256sum "$1" | cut -d' ' -f1)
  size=$(stat -c %s "$1")
  mv "$1" "blobs/sha256/$digest"
  echo "sha256:$digest $size"
}

# layer DIRECTORY NAME: packs it; prints diff ID, digest and size.
layer() {
  tar --create --sort=name --mtime=@1700000000 --owner=0 --group=0 --numeric-owner --file "$2.tar" --directory "$1" .
  local diff_id
  diff_id=sha256:$(sha256sum "$2.tar" | cut -d' ' -f1)
  gzip --no-name "$2.tar"
  echo "$diff_id $(blob "$2.tar.gz")"
}

# make_image WORK NAME ARCHIVE
make_image() (
  rm -rf "$1"
  mkdir -p "$1"/{one,two}/etc "$1"/one/{bin,dev,proc,root,sys,tmp,run,shared} "$1/blobs/sha256"
  cd "$1"
  cp "$(command -v busybox)" one/bin/busybox
  for name in $(busybox --list); do
    [ "$name" = busybox ] || ln -s busybox "one/bin/$name"
  done
  echo "root:x:0:0:root:/root:/bin/sh" >one/etc/passwd
  echo "root:x:0:" >one/etc/group
  echo "from the first layer" >one/etc/changed
  echo "only in the first layer" >one/etc/deleted
  echo "changed by the second layer" >two/etc/changed
  : >two/etc/.wh.deleted

  cat >two/etc/view <<'VIEW'
echo "hostname    $(hostname)"
echo "process 1   $(tr '\0' ' ' </proc/1/cmdline), seen as pid $$"
echo "processes   $(ls -d /proc/[0-9]* | wc -l)"
echo "changed     $(cat /etc/changed)"
[ -e /etc/deleted ] && echo "deleted     still there" || echo "deleted     gone"
echo "interfaces  $(ls /sys/class/net | tr '\n' ' ')"
echo "no new privileges, seccomp: $(grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr '\t\n' '  ')"
echo "limits      $(grep -E 'open files' /proc/self/limits)"
echo "cgroups"
cat /proc/self/cgroup | head -n 3
echo "mounts"
awk '{ print "  " $2 " " $3 " " substr($4, 1, 60) }' /proc/mounts
VIEW

  cat >two/etc/worker <<'WORKER'
echo "GREETING is $GREETING"
echo "the host says: $(cat /shared/from-host)"
echo "written by the container" >/shared/from-container
echo "complaints go here too" >&2
echo ready
exec sleep 1000
WORKER

  read -r diff1 digest1 size1 < <(layer one layer1)
  read -r diff2 digest2 size2 < <(layer two layer2)
  printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["%s","%s"]}}' \
    "$diff1" "$diff2" >config
  read -r config_digest config_size < <(blob config)
  local gzip=application/vnd.oci.image.layer.v1.tar+gzip
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"%s","digest":"%s","size":%s},{"mediaType":"%s","digest":"%s","size":%s}]}' \
    "$config_digest" "$config_size" $gzip "$digest1" "$size1" $gzip "$digest2" "$size2" >manifest
  read -r manifest_digest manifest_size < <(blob manifest)
  printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"io.containerd.image.name":"%s"}}]}' \
    "$manifest_digest" "$manifest_size" "$2" >index.json
  echo '{"imageLayoutVersion":"1.0.0"}' >oci-layout
  tar --create --file "$3" oci-layout index.json blobs
  printf 'layer 1  %s  %s bytes\nlayer 2  %s  %s bytes\nimage    %s\n' "$digest1" "$size1" "$digest2" "$size2" "$manifest_digest"
)

# start_registry DIRECTORY: prints its address; its process id is in DIRECTORY/pid.
start_registry() {
  local port address pid
  for _ in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 20000))
    address=127.0.0.1:$port
    cat >"$1/config.yml" <<CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $1/data}, maintenance: {uploadpurging: {enabled: false}}}
http: {addr: "$address"}
CONFIG
    docker-registry serve "$1/config.yml" >"$1/log" 2>&1 </dev/null &
    pid=$!
    for _ in $(seq 200); do
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        kill -0 $pid 2>/dev/null || break
        echo $pid >"$1/pid"
        echo "$address"
        return
      fi
      kill -0 $pid 2>/dev/null || break
      sleep 0.05
    done
  done
  echo "docker-registry does not start:" >&2
  cat "$1/log" >&2
  return 1
}
