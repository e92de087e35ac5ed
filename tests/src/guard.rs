//! What stands before a registry: a certificate by an authority of the test's own, a password file, a server of tokens.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::binaries;
use crate::command::Cmd;

/// The only user that the registries know.
pub const USER: &str = "orlop";
/// The user's password.
pub const PASSWORD: &str = "open sesame";
/// Its line in a password file: bcrypt at the lowest cost that Go's package takes without complaint.
const PASSWORD_LINE: &str = "orlop:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";
/// What the token server and the registry call themselves to each other.
const SERVICE: &str = "orlop-tests";

/// How a registry lets clients in; TLS always, with a certificate for 127.0.0.1.
#[derive(Debug)]
pub enum Guard {
    /// Everybody.
    Open,
    /// Whoever knows the password (`Basic`).
    Password,
    /// Whoever has a token, which the server gives for the password (`Bearer`).
    Token,
}

/// An authority with a certificate for a registry and one for a client, all made by openssl.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes the keys and certificates in `dir`, a directory that exists.
    pub fn new(dir: &Path) -> Authority {
        Authority::named(dir, "orlop tests authority")
    }

    /// The same under another name.
    pub fn named(dir: &Path, name: &str) -> Authority {
        let authority = Authority { dir: dir.to_owned() };
        let openssl = |args: &[&str]| {
            Cmd::new(binaries::system("openssl")).args(args.iter().copied()).cwd(dir).run().success();
        };
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        let own = ["-keyout", "ca.key", "-out", "ca.pem", "-subj", &format!("/CN={name}")];
        openssl(
            &[&request[..], &own, &["-addext", "keyUsage=critical,keyCertSign,digitalSignature"]].concat(),
        );
        let signed = ["-keyout", "registry.key", "-out", "registry.pem", "-subj", "/CN=127.0.0.1"];
        let by = ["-CA", "ca.pem", "-CAkey", "ca.key"];
        let names =
            ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        openssl(&[&request[..], &signed, &by, &names].concat());
        let client = ["-keyout", "client.key", "-out", "client.pem", "-subj", "/CN=orlop tests client"];
        let use_as =
            ["-addext", "extendedKeyUsage=clientAuth", "-addext", "basicConstraints=critical,CA:FALSE"];
        openssl(&[&request[..], &client, &by, &use_as].concat());
        authority
    }

    /// The authority's certificate, which clients must trust.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A client's certificate and key.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("client.pem"), self.dir.join("client.key"))
    }

    /// The certificate and key of a server on 127.0.0.1.
    pub fn registry(&self) -> (PathBuf, PathBuf) {
        (self.dir.join("registry.pem"), self.dir.join("registry.key"))
    }

    /// Signs by RSA and SHA-256 (RS256 of RFC 7518).
    fn sign(&self, text: &str) -> Vec<u8> {
        let sign = Cmd::new(binaries::system("openssl")).args(["dgst", "-sha256", "-sign", "ca.key"]);
        sign.cwd(&self.dir).input(text).run().success().stdout_bytes
    }
}

/// The password file of a registry, written into `dir`.
pub(crate) fn password_file(dir: &Path) -> PathBuf {
    let path = dir.join("htpasswd");
    fs::write(&path, PASSWORD_LINE).expect("writing the password file");
    path
}

/// The part of docker-registry's configuration that asks for passwords.
pub(crate) fn basic(file: &Path) -> Value {
    json!({"htpasswd": {"realm": SERVICE, "path": file}})
}

/// Gives tokens for the password, as the distribution project's token specification says, until dropped.
#[derive(Debug)]
pub struct TokenServer {
    address: String,
    given: Arc<AtomicUsize>,
}

impl TokenServer {
    /// Listens on a free port of loopback; tokens are signed by the authority.
    pub fn start(authority: &Authority) -> TokenServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let given = Arc::new(AtomicUsize::new(0));
        let (authority, count) = (Authority { dir: authority.dir.clone() }, Arc::clone(&given));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // Its owner has gone.
                if Arc::strong_count(&count) == 1 {
                    return;
                }
                // A client that goes away gets no token.
                if answer(stream, &authority).unwrap_or(false) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        TokenServer { address, given }
    }

    /// How many tokens were given.
    pub fn given(&self) -> usize {
        self.given.load(Ordering::Relaxed)
    }

    /// The part of docker-registry's configuration that asks for tokens.
    pub(crate) fn configuration(&self, authority: &Authority) -> Value {
        let realm = format!("http://{}/token", self.address);
        let roots = authority.certificate();
        json!({"token": {"realm": realm, "service": SERVICE, "issuer": SERVICE, "rootcertbundle": roots}})
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.given = Arc::default();
        // Wakes the listener, which then sees that it is alone.
        let _ = TcpStream::connect(&self.address);
    }
}

/// Answers one request; whether with a token.
fn answer(stream: TcpStream, authority: &Authority) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let knows = lines.iter().any(|line| {
        // base64 of "orlop:open sesame"
        line.to_ascii_lowercase().starts_with("authorization: basic")
            && line.ends_with(" b3Jsb3A6b3BlbiBzZXNhbWU=")
    });
    let (status, body) = match (knows, lines.first()) {
        (true, Some(request)) => ("200 OK", json!({"token": token(request, authority)})),
        _ => ("401 Unauthorized", json!({"details": "incorrect username or password"})),
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&stream).write_all((head + &body).as_bytes())?;
    Ok(knows)
}

/// A JSON web token that grants what a request line (`GET /token?scope=…`) asks for.
fn token(request: &str, authority: &Authority) -> String {
    let query =
        request.split(' ').nth(1).and_then(|target| target.split_once('?')).map_or("", |(_, query)| query);
    let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope=")).map(|scope| {
        scope
            .replace("%3A", ":")
            .replace("%2F", "/")
            .replace("%2C", ",")
            .replace('+', " ")
            .replace("%20", " ")
    });
    let access: Vec<Value> = scopes
        .flat_map(|scopes| scopes.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|scope| {
            let mut parts = scope.splitn(3, ':').map(str::to_owned);
            let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
            let actions: Vec<&str> = actions.split(',').collect();
            Some(json!({"type": kind, "name": name, "actions": actions}))
        })
        .collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let certificate = fs::read_to_string(authority.certificate()).expect("the authority's certificate");
    let certificate: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]});
    let claims = json!({
        "iss": SERVICE, "aud": SERVICE, "sub": USER, "jti": now.to_string(),
        "iat": now, "nbf": now - 60, "exp": now + 600, "access": access,
    });
    let signed =
        format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let signature = authority.sign(&signed);
    format!("{signed}.{}", base64url(&signature))
}

/// Base64 with the URL-safe alphabet and without padding (RFC 4648, section 5).
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    bytes
        .chunks(3)
        .flat_map(|group| {
            let bits =
                group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            (0..=group.len()).map(move |place| char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expected) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("\u{3f}\u{3e}", "Pz4")]
        {
            assert_eq!(base64url(text.as_bytes()), expected);
        }
    }
}
