//! What may stand between a client and a registry: an HTTP front that notes every request and does as it is told, and a cutter
//! of TCP connections.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Path and query; through a proxy a whole URL.
    pub target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// The first header of that name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// How many bytes came with it.
    pub fn length(&self) -> usize {
        self.body.len()
    }
}

/// What a front does with a request.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Passes it on, and the answer back.
    Forward,
    /// Answers by itself: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Passes it on, and the answer back with its last byte changed.
    Corrupt,
    /// Passes it on, and the answer back so many bytes at a time.
    Drip(usize, Duration),
    /// Passes it on, and so many bytes of the answer back; then the connection ends.
    Cut(usize),
    /// Never answers.
    Hang,
}

type Script = dyn Fn(&Request, &[Request]) -> Deed + Send + Sync;

/// A server before a registry, ended when dropped.
pub struct Front {
    address: String,
    seen: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Front {
    /// Listens on a free port of `host` before `upstream` (host:port). The script gets each request and those that came
    /// before it. What asks for a tunnel (CONNECT) gets one to `upstream`.
    pub fn start(
        host: &str,
        upstream: &str,
        script: impl Fn(&Request, &[Request]) -> Deed + Send + Sync + 'static,
    ) -> Front {
        let listener = TcpListener::bind((host, 0)).expect("a free port");
        let address =
            format!("{host}:{}", listener.local_addr().expect("a bound socket has an address").port());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (upstream, script): (String, Arc<Script>) = (upstream.to_owned(), Arc::new(script));
        let (noted, has_ended) = (seen.clone(), ended.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if has_ended.load(Ordering::Relaxed) {
                    return;
                }
                let (upstream, noted, script) = (upstream.clone(), noted.clone(), script.clone());
                let has_ended = has_ended.clone();
                // A client that goes away is answered no more.
                thread::spawn(move || serve(client, &upstream, &noted, &*script, &has_ended));
            }
        });
        Front { address, seen, ended }
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("no holder panics").clone()
    }

    /// How many requests so far have this method and a target that contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.target.contains(part)).count()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees the end.
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(
    client: TcpStream,
    upstream: &str,
    noted: &Mutex<Vec<Request>>,
    script: &Script,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let Some(request) = read_request(&mut reader)? else { return Ok(()) };
    let deed = {
        let mut noted = noted.lock().expect("no holder panics");
        let deed = script(&request, &noted);
        noted.push(request.clone());
        deed
    };
    let mut client = client;
    if request.method == "CONNECT" {
        let server = TcpStream::connect(upstream)?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (from, to) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || pipe(from, to));
        pipe(server, client);
        return Ok(());
    }
    let is_corrupt = matches!(deed, Deed::Corrupt);
    match deed {
        Deed::Hang => {
            while !ended.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Deed::Answer(status, headers, body) => {
            let mut head = format!(
                "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {}\r\n",
                body.len()
            );
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            client.write_all(format!("{head}\r\n").as_bytes())?;
            if request.method != "HEAD" {
                client.write_all(&body)?;
            }
            end(&client)
        }
        Deed::Forward | Deed::Corrupt | Deed::Drip(..) | Deed::Cut(_) => {
            let mut answer = forward(&request, upstream)?;
            if is_corrupt && let Some(last) = answer.last_mut() {
                *last ^= 1;
            }
            match deed {
                Deed::Drip(piece, pause) => {
                    for part in answer.chunks(piece) {
                        client.write_all(part)?;
                        thread::sleep(pause);
                    }
                }
                Deed::Cut(length) => client.write_all(&answer[..length.min(answer.len())])?,
                _ => client.write_all(&answer)?,
            }
            end(&client)
        }
    }
}

/// Ends the answer, and waits for the client to see it: data that nobody has read would turn the end into a reset.
fn end(client: &TcpStream) -> io::Result<()> {
    client.shutdown(Shutdown::Write)?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    io::copy(&mut (&*client), &mut io::sink()).map(|_| ())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut request = Request { method, target, headers, body: Vec::new() };
    if let Some(length) = request.header("content-length").and_then(|length| length.parse().ok()) {
        request.body = vec![0; length];
        reader.read_exact(&mut request.body)?;
    } else if request.header("transfer-encoding").is_some() {
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk)?;
            request.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    }
    Ok(Some(request))
}

/// Asks the registry; the answer as it is, on a connection of its own.
fn forward(request: &Request, upstream: &str) -> io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(upstream)?;
    // To a proxy the target is a whole URL.
    let target = match request.target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => &request.target,
    };
    let mut head = format!("{} {target} HTTP/1.1\r\nConnection: close\r\n", request.method);
    let own = ["connection", "content-length", "transfer-encoding"];
    for (name, value) in
        request.headers.iter().filter(|(name, _)| !own.contains(&name.to_lowercase().as_str()))
    {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !request.body.is_empty() || matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
        head.push_str(&format!("Content-Length: {}\r\n", request.body.len()));
    }
    server.write_all(format!("{head}\r\n").as_bytes())?;
    server.write_all(&request.body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

fn pipe(mut from: TcpStream, mut to: TcpStream) {
    // Either side may go away at any time.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Passes connections on until a given number of bytes has passed in both directions together; then the connection of that
/// byte is cut, once.
#[derive(Debug)]
pub struct Cutter {
    address: String,
    state: Arc<CutterState>,
}

#[derive(Debug)]
struct CutterState {
    passed: AtomicU64,
    cut_at: AtomicU64,
    /// How many bytes had passed at the end of each record.
    records: Mutex<Vec<u64>>,
    ended: AtomicBool,
}

impl Cutter {
    /// Listens on a free port of loopback before `upstream`, and cuts nothing yet.
    pub fn start(upstream: &str) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let state = Arc::new(CutterState {
            passed: AtomicU64::new(0),
            cut_at: AtomicU64::new(u64::MAX),
            records: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
        });
        let (upstream, inner) = (upstream.to_owned(), state.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if inner.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&upstream) else { continue };
                let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else { continue };
                let (one, other) = (inner.clone(), inner.clone());
                thread::spawn(move || one.copy(client2, server2));
                thread::spawn(move || other.copy(server, client));
            }
        });
        Cutter { address, state }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Counts from 0 again and cuts when so many bytes have passed.
    pub fn cut_at(&self, bytes: u64) {
        self.state.records.lock().expect("no holder panics").clear();
        self.state.passed.store(0, Ordering::SeqCst);
        self.state.cut_at.store(bytes, Ordering::SeqCst);
    }

    /// Whether the cut was made.
    pub fn has_cut(&self) -> bool {
        self.state.cut_at.load(Ordering::SeqCst) == u64::MAX
    }

    /// How many bytes had passed at the end of each record, as far as the network shows them.
    pub fn records(&self) -> Vec<u64> {
        self.state.records.lock().expect("no holder panics").clone()
    }
}

impl CutterState {
    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let before = self.passed.fetch_add(length as u64, Ordering::SeqCst);
            let after = before + length as u64;
            self.records.lock().expect("no holder panics").push(after);
            let cut_at = self.cut_at.load(Ordering::SeqCst);
            if (before..after).contains(&cut_at) && self.cut_at.swap(u64::MAX, Ordering::SeqCst) == cut_at {
                let _ = to.write_all(&buffer[..(cut_at - before) as usize]);
                break;
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees the end.
        let _ = TcpStream::connect(&self.address);
    }
}
