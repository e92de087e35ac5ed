//! A TCP proxy in front of a registry that lets only so many bytes of answers through: a network that stalls at a chosen point.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// The proxy, ended when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    /// Bytes that may still pass to the client.
    budget: Mutex<u64>,
    changed: Condvar,
    stalled: AtomicBool,
    ended: AtomicBool,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to `upstream` (host:port) until `budget` bytes of answers have passed.
    pub fn start(upstream: &str, budget: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let gate = Arc::new(Gate {
            budget: Mutex::new(budget),
            changed: Condvar::new(),
            stalled: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let (upstream, inner) = (upstream.to_owned(), Arc::clone(&gate));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if inner.ended.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(&upstream) else { continue };
                let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else { continue };
                thread::spawn(move || copy(client2, server2, |_| true));
                let gate = Arc::clone(&inner);
                thread::spawn(move || copy(server, client, |bytes| gate.pass(bytes)));
            }
        });
        Proxy { address, gate }
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the budget is used up and something waits.
    pub fn stalled(&self) -> bool {
        self.gate.stalled.load(Ordering::Relaxed)
    }

    /// Lets everything through from now on.
    pub fn release(&self) {
        *self.gate.budget.lock().expect("no holder panics") = u64::MAX;
        self.gate.stalled.store(false, Ordering::Relaxed);
        self.gate.changed.notify_all();
    }
}

impl Gate {
    /// Waits until `bytes` may pass; `false` when the proxy has ended.
    fn pass(&self, bytes: usize) -> bool {
        let mut budget = self.budget.lock().expect("no holder panics");
        while *budget < bytes as u64 {
            if self.ended.load(Ordering::Relaxed) {
                return false;
            }
            self.stalled.store(true, Ordering::Relaxed);
            budget = self.changed.wait(budget).expect("no holder panics");
        }
        *budget -= bytes as u64;
        true
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn(usize) -> bool) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if !may_pass(length) || to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.gate.ended.store(true, Ordering::Relaxed);
        self.gate.changed.notify_all();
        // Wakes the listener, which then sees the end.
        let _ = TcpStream::connect(&self.address);
    }
}
