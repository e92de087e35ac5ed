//! A profile of the processor time, in pprof's format, over HTTP on a socket of its own (`[debug] address`), where Go's programs have
//! theirs: `/debug/pprof/profile?seconds=N`.
//!
//! It has addresses; names come from a program with symbols that was built of the same source (docs/decisions/1012-profiles.md).

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_host::sys::profile::Recording;
use orlop_proto::error::{Context, Result};
use prost::Message;
use tokio::net::UnixListener;

use crate::db::blocking;

/// Processor time between two stacks.
const PERIOD: Duration = Duration::from_millis(10);
/// How long is recorded where nobody says, and at most.
const DEFAULT_SECONDS: u64 = 30;
const MOST_SECONDS: u64 = 600;
/// What is there, for who asks for nothing in particular.
const INDEX: &str = "/debug/pprof/profile?seconds=N\n/debug/pprof/cmdline\n";

/// Serves profiles to whoever connects.
pub async fn serve(listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "profiles: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tokio::spawn(async move {
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                Ok::<_, Infallible>(answer(request.uri()).await)
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "profiles");
            }
        });
    }
}

async fn answer(uri: &http::Uri) -> Response<Full<Bytes>> {
    let (status, body) = match uri.path() {
        "/debug/pprof/profile" => match profile(seconds(uri.query().unwrap_or_default())).await {
            Ok(profile) => (StatusCode::OK, profile),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into_bytes()),
        },
        "/debug/pprof/cmdline" => (StatusCode::OK, std::fs::read("/proc/self/cmdline").unwrap_or_default()),
        "/debug/pprof" | "/debug/pprof/" => (StatusCode::OK, INDEX.into()),
        // Heaps, goroutines and traces are those of Go's own runtime.
        _ => (StatusCode::NOT_FOUND, format!("not found; there are\n{INDEX}").into_bytes()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

fn seconds(query: &str) -> u64 {
    let given = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "seconds");
    let number = given.and_then(|(_, value)| value.parse().ok());
    number.unwrap_or(DEFAULT_SECONDS).clamp(1, MOST_SECONDS)
}

async fn profile(seconds: u64) -> Result<Vec<u8>> {
    let duration = Duration::from_secs(seconds);
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let recording = Recording::start(PERIOD).context("record", "profile")?;
    // It ends with whoever asked for it, and with the daemon.
    tokio::time::sleep(duration).await;
    let stacks = recording.finish();
    blocking(move || {
        let maps = std::fs::read_to_string("/proc/self/maps").context("read", "/proc/self/maps")?;
        let profile = encode(stacks, &maps, began, duration);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(&profile.encode_to_vec()).context("pack", "profile")?;
        packed.finish().context("pack", "profile")
    })
    .await
}

/// A profile (pprof's profile.proto). Texts are places in the table of strings.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(uint64, tag = "4")]
    file_offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
}

fn nanoseconds(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

fn encode(stacks: Vec<Vec<usize>>, maps: &str, began: Duration, duration: Duration) -> Profile {
    // The first string is the empty one.
    let mut strings: Vec<String> = ["", "samples", "count", "cpu", "nanoseconds"].map(str::to_owned).to_vec();
    let mut mappings = Vec::new();
    for (start, end, offset, file) in executable(maps) {
        let (id, filename) = (mappings.len() as u64 + 1, strings.len() as i64);
        mappings.push(Mapping { id, memory_start: start, memory_limit: end, file_offset: offset, filename });
        strings.push(file.to_owned());
    }
    let mut counts: BTreeMap<Vec<u64>, i64> = BTreeMap::new();
    let mut locations: HashMap<u64, u64> = HashMap::new();
    for stack in stacks {
        let identified = stack.iter().map(|address| {
            let next = locations.len() as u64 + 1;
            *locations.entry(*address as u64).or_insert(next)
        });
        *counts.entry(identified.collect()).or_default() += 1;
    }
    let location = |(address, id): (u64, u64)| {
        let has = |mapping: &&Mapping| (mapping.memory_start..mapping.memory_limit).contains(&address);
        let mapping_id = mappings.iter().find(has).map_or(0, |mapping| mapping.id);
        Location { id, mapping_id, address }
    };
    let cpu = ValueType { kind: 3, unit: 4 };
    Profile {
        sample_type: vec![ValueType { kind: 1, unit: 2 }, cpu.clone()],
        sample: counts
            .into_iter()
            .map(|(location_id, count)| Sample {
                location_id,
                value: vec![count, count * nanoseconds(PERIOD)],
            })
            .collect(),
        location: locations.into_iter().map(location).collect(),
        mapping: mappings,
        string_table: strings,
        time_nanos: nanoseconds(began),
        duration_nanos: nanoseconds(duration),
        period_type: Some(cpu),
        period: nanoseconds(PERIOD),
    }
}

/// Start, end, offset and file of the executable mappings (proc_pid_maps(5)).
fn executable(maps: &str) -> impl Iterator<Item = (u64, u64, u64, &str)> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let is_executable = words.next()?.contains('x');
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let offset = number(words.next()?)?;
        let file = words.nth(2).filter(|_| is_executable)?;
        Some((number(start)?, number(end)?, offset, file))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-2000 r--p 00000000 fd:00 12 /usr/bin/orlopd
2000-9000 r-xp 00001000 fd:00 12 /usr/bin/orlopd
a000-b000 rw-p 00000000 00:00 0
f000-f800 r-xp 00000000 00:00 0 [vdso]
";

    #[test]
    fn equal_stacks_are_counted_and_addresses_found_in_their_files() {
        let stacks = vec![vec![0x2010, 0x3000], vec![0xf001], vec![0x2010, 0x3000], vec![0xa500]];
        let profile = encode(stacks, MAPS, Duration::from_secs(1), Duration::from_secs(2));
        let mut values: Vec<_> = profile.sample.iter().map(|sample| sample.value.clone()).collect();
        values.sort();
        assert_eq!(values, [[1, 10_000_000], [1, 10_000_000], [2, 20_000_000]]);
        let file = |address: u64| {
            let location = profile.location.iter().find(|location| location.address == address).unwrap();
            let mapping = profile.mapping.iter().find(|mapping| mapping.id == location.mapping_id);
            mapping.map(|mapping| profile.string_table[mapping.filename as usize].as_str())
        };
        assert_eq!(file(0x3000), Some("/usr/bin/orlopd"));
        assert_eq!(file(0xf001), Some("[vdso]"));
        assert_eq!(file(0xa500), None);
        assert_eq!(Profile::decode(profile.encode_to_vec().as_slice()).unwrap(), profile);
    }

    #[test]
    fn seconds_have_bounds() {
        assert_eq!(seconds("seconds=5"), 5);
        assert_eq!(seconds("seconds=0"), 1);
        assert_eq!(seconds("seconds=99999999"), MOST_SECONDS);
        assert_eq!(seconds("x=1"), DEFAULT_SECONDS);
    }
}
