//! The portal's address, and the proxy on the way to it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::error::Error;
use crate::secret::Secret;

/// The address of a portal: `http(s)://host[:port][/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// Whether the connection is encrypted.
    pub https: bool,
    /// A name in lower case or an IP address, without the brackets of IPv6.
    pub host: String,
    /// The port, where it is not the scheme's own.
    pub port: Option<u16>,
    /// Empty, or a path that begins with a slash and ends without one.
    pub path: String,
}

impl Url {
    /// Reads an address.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, without showing the text: it may hold a password.
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        if text.len() > 2000 {
            return Err("the address is longer than 2,000 bytes");
        }
        let (https, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some(_) => return Err("the address must begin with https:// (or http://)"),
            None => return Err("the address has no scheme: write https:// before it"),
        };
        if rest.contains(['?', '#']) {
            return Err("the address has a query ('?') or fragment ('#'): give the portal's own address");
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(
                "the address has a user name or password before '@': the key goes in DOCSPACE_API_KEY",
            );
        }
        let (host, port) = host_and_port(authority)?;
        let in_path = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b);
        if !path.bytes().all(in_path) || path.split('/').any(|part| part == "." || part == "..") {
            return Err(
                "the address has an invalid path: write it without spaces, '.' and '..', other characters as %XX",
            );
        }
        let path = path.trim_end_matches('/').to_owned();
        Ok(Url { https, host, port, path })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}", bracketed(&self.host))?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

/// A proxy, from a variable.
#[derive(Debug, PartialEq, Eq)]
pub struct Proxy {
    /// The variable that named it.
    pub variable: &'static str,
    /// The protocol spoken to it.
    pub protocol: Protocol,
    /// User and password, percent-encoded, as the variable has them.
    pub credentials: Option<Secret>,
    /// A name in lower case or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How to speak to a proxy. All of them are given the portal's name to look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// CONNECT over HTTP.
    Http,
    /// CONNECT over HTTPS.
    Https,
    /// SOCKS4a.
    Socks4,
    /// SOCKS5, with the name given to the proxy.
    Socks5,
}

impl Proxy {
    /// Chooses the proxy for one address from the environment, by curl's rules: the scheme's own
    /// variable before `all_proxy`, lower case before upper case, `HTTP_PROXY` never (a CGI server
    /// sets it from a request's header), then `no_proxy`.
    ///
    /// # Errors
    ///
    /// A value that is not a usable proxy, named by its variable and not shown.
    pub fn choose(
        url: &Url,
        env: impl Fn(&'static str) -> Result<Option<String>, Error>,
    ) -> Result<Option<Proxy>, Error> {
        let variables: &[&'static str] = match url.https {
            true => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            false => &["http_proxy", "all_proxy", "ALL_PROXY"],
        };
        for name in ["no_proxy", "NO_PROXY"] {
            if let Some(list) = env(name)? {
                if bypasses(&list, &url.host) {
                    return Ok(None);
                }
                break;
            }
        }
        for variable in variables {
            if let Some(value) = env(variable)? {
                let proxy = Proxy::parse(variable, &value);
                return proxy.map(Some).map_err(|why| Error::usage(format!("{variable}: {why}")));
            }
        }
        Ok(None)
    }

    fn parse(variable: &'static str, text: &str) -> Result<Proxy, &'static str> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        // Ports as curl has them: 1080 for all but https.
        let (protocol, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Protocol::Http, 1080),
            "https" => (Protocol::Https, 443),
            "socks" | "socks4" | "socks4a" => (Protocol::Socks4, 1080),
            "socks5" | "socks5h" => (Protocol::Socks5, 1080),
            _ => {
                return Err(
                    "not a usable proxy: the scheme must be one of http:// https:// socks4:// socks5://",
                );
            }
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if path.contains('@') {
            return Err("not a usable proxy: bad user or password (write special characters as %XX)");
        }
        let (credentials, authority) = match authority.rsplit_once('@') {
            Some((credentials, authority)) => (Some(Secret::new(credentials)), authority),
            None => (None, authority),
        };
        if protocol == Protocol::Socks4 && credentials.is_some() {
            return Err("not a usable proxy: SOCKS4 does not support user and password");
        }
        let (host, port) = host_and_port(authority).map_err(|_| "not a usable proxy: bad host or port")?;
        let port = port.unwrap_or(default_port);
        Ok(Proxy { variable, protocol, credentials, host, port })
    }
}

/// Without the credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

/// A host as an address has it: IPv6 in brackets.
fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// Whether a host is this machine, by its exact name or address.
pub fn is_loopback(host: &str) -> bool {
    let ip = host.parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

fn host_and_port(authority: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => {
            let ip: Ipv6Addr = host.parse().map_err(|_| "the address has a bad IPv6 host")?;
            (ip.to_string(), port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            if !is_name(host) {
                return Err(
                    "the address has no usable host (a name in ASCII, an IPv4 address, or IPv6 in brackets)",
                );
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => match digits.parse() {
            Ok(0) | Err(_) => return Err("the address has a bad port"),
            Ok(port) => Some(port),
        },
        _ => return Err("the address has a bad port"),
    };
    Ok((host, port))
}

/// A name of the domain name system (underscores are seen in container networks), or an IPv4
/// address. Nothing half-way: `127.1` and `0x7f.1` mean an address to some resolvers.
fn is_name(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit()) || last.to_ascii_lowercase().starts_with("0x");
    let ipv4 = host.parse::<std::net::Ipv4Addr>().is_ok();
    ipv4 || (name.len() <= 253 && name.split('.').all(label) && !number)
}

/// Whether the list in `no_proxy` names the host: it is `*` and nothing else, or one of its entries is
/// the address, a block of addresses, or a name, which covers its subdomains.
fn bypasses(list: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let ip = host.parse::<IpAddr>();
    let names = |entry: &str| match ip {
        Ok(ip) => covers(entry, ip),
        Err(_) => {
            let entry = entry.to_ascii_lowercase();
            let entry = entry.strip_prefix('.').unwrap_or(&entry);
            let entry = entry.strip_suffix('.').unwrap_or(entry);
            let above = host.strip_suffix(entry);
            !entry.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        }
    };
    list == "*" || list.split([',', ' ', '\t']).any(names)
}

/// Whether `entry`, an address or a block such as `10.0.0.0/8`, covers the address. As with curl, a
/// block of 0 bits is the one address.
fn covers(entry: &str, ip: IpAddr) -> bool {
    let (address, bits) = match entry.split_once('/') {
        Some((address, bits)) => (address, bits.parse::<u32>().ok()),
        None => (entry, Some(0)),
    };
    let (Ok(address), Some(bits)) = (address.parse::<IpAddr>(), bits) else {
        return false;
    };
    let (same, all) = match (address, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ((u32::from(a) ^ u32::from(b)).leading_zeros(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => ((u128::from(a) ^ u128::from(b)).leading_zeros(), 128),
        _ => return false,
    };
    // More bits than there are cover nothing.
    same >= if bits == 0 { all } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, read, loopback) in [
            ("https://portal.example", "https://portal.example", false),
            ("https://Portal.Example/", "https://portal.example", false),
            ("HTTPS://portal.example:8443/docs//", "https://portal.example:8443/docs", false),
            ("https://portal.example./a%20b/c", "https://portal.example./a%20b/c", false),
            ("http://my_portal:80", "http://my_portal:80", false),
            ("http://localhost:8092", "http://localhost:8092", true),
            ("http://127.0.0.1/", "http://127.0.0.1", true),
            ("http://127.9.8.7", "http://127.9.8.7", true),
            ("http://[::1]:80/x", "http://[::1]:80/x", true),
            ("https://[2001:DB8::1]", "https://[2001:db8::1]", false),
            ("http://127.0.0.1.invalid", "http://127.0.0.1.invalid", false),
            ("http://localhost.invalid", "http://localhost.invalid", false),
            ("http://notlocalhost", "http://notlocalhost", false),
            ("http://10.0.0.1", "http://10.0.0.1", false),
            ("http://[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]", false),
        ] {
            let url = Url::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(url.to_string(), read, "{text}");
            assert_eq!(is_loopback(&url.host), loopback, "{text}");
        }
    }

    #[test]
    fn addresses_that_are_none() {
        for (text, why) in [
            ("", "no scheme"),
            ("portal.example", "no scheme"),
            ("ftp://portal.example", "begin with https://"),
            ("https://", "no usable host"),
            ("https:///path", "no usable host"),
            ("https://user@portal.example", "before '@'"),
            ("https://user:password@portal.example", "before '@'"),
            ("https://portal.example?x", "query"),
            ("https://portal.example/?", "query"),
            ("https://portal.example/#top", "fragment"),
            ("https://portal.example:", "bad port"),
            ("https://portal.example:0", "bad port"),
            ("https://portal.example:65536", "bad port"),
            ("https://portal.example:+80", "bad port"),
            ("https://portal.example:80:80", "bad port"),
            ("https://[::1", "no usable host"),
            ("https://[::1]x", "bad port"),
            ("https://[127.0.0.1]", "bad IPv6 host"),
            ("https://[fe80::1%eth0]", "bad IPv6 host"),
            ("https://::1", "no usable host"),
            ("https://портал.example", "no usable host"),
            ("https://portal .example", "no usable host"),
            ("https://portal..example", "no usable host"),
            ("https://127.1", "no usable host"),
            ("https://0x7f.0.0.0x1", "no usable host"),
            ("https://2130706433", "no usable host"),
            ("https://256.1.1.1", "no usable host"),
            ("https://portal.example/a b", "path"),
            ("https://portal.example/a\r\nX: y", "path"),
            ("https://portal.example/a/../b", "path"),
            ("https://portal.example\\@evil.example", "before '@'"),
        ] {
            let answer = Url::parse(text).expect_err(text);
            assert!(answer.contains(why), "{text}: {answer}");
        }
    }

    fn choose(url: &str, env: &[(&'static str, &str)]) -> Result<Option<Proxy>, Error> {
        let url = Url::parse(url).expect(url);
        let value = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        Proxy::choose(&url, |name| Ok(value(name)))
    }

    #[test]
    fn proxies_by_curls_rules() {
        let (http, https) = ("http://portal.example", "https://portal.example");
        let none: Option<(&str, Protocol, &str)> = None;
        for (url, env, chosen) in [
            (https, &[][..], none),
            (
                https,
                &[("HTTPS_PROXY", "http://p.example:3128")],
                Some(("HTTPS_PROXY", Protocol::Http, "p.example:3128")),
            ),
            (
                https,
                &[("HTTPS_PROXY", "big:1"), ("https_proxy", "small:2")],
                Some(("https_proxy", Protocol::Http, "small:2")),
            ),
            (
                https,
                &[("all_proxy", "all:1"), ("HTTPS_PROXY", "own:2")],
                Some(("HTTPS_PROXY", Protocol::Http, "own:2")),
            ),
            (https, &[("ALL_PROXY", "socks5://all")], Some(("ALL_PROXY", Protocol::Socks5, "all:1080"))),
            (https, &[("http_proxy", "p:1"), ("HTTP_PROXY", "p:1")], none),
            (http, &[("http_proxy", "p:1")], Some(("http_proxy", Protocol::Http, "p:1"))),
            (http, &[("HTTP_PROXY", "p:1"), ("https_proxy", "p:1")], none),
            (http, &[("ALL_PROXY", "p")], Some(("ALL_PROXY", Protocol::Http, "p:1080"))),
            (https, &[("https_proxy", "https://p")], Some(("https_proxy", Protocol::Https, "p:443"))),
            (
                https,
                &[("https_proxy", "socks4a://[::1]:9/x")],
                Some(("https_proxy", Protocol::Socks4, "[::1]:9")),
            ),
            (https, &[("https_proxy", "SOCKS5H://P:9")], Some(("https_proxy", Protocol::Socks5, "p:9"))),
            (https, &[("https_proxy", "p:1"), ("NO_PROXY", "portal.example")], none),
            (https, &[("https_proxy", "p:1"), ("NO_PROXY", "x, .EXAMPLE")], none),
            (
                https,
                &[("https_proxy", "p:1"), ("no_proxy", "other"), ("NO_PROXY", "*")],
                Some(("https_proxy", Protocol::Http, "p:1")),
            ),
            // What is not used is not read.
            (https, &[("https_proxy", "ftp://p"), ("NO_PROXY", "*")], none),
        ] {
            let proxy = choose(url, env).unwrap_or_else(|e| panic!("{url} {env:?}: {e}"));
            let proxy = proxy.as_ref().map(|p| (p.variable, p.protocol, p.to_string()));
            let chosen = chosen.map(|(variable, protocol, at)| (variable, protocol, at.to_owned()));
            assert_eq!(proxy, chosen, "{url} {env:?}");
        }
    }

    #[test]
    fn proxies_that_are_none_are_named_and_not_shown() {
        for value in [
            "ftp://user:hush@p:1",
            "http://user:hush@",
            "http://user:hush@p:x",
            "http://user:hush@p q",
            "socks4://user:hush@p",
            "socks://user:hush@p",
            "http://user:hu/sh@p",
            "hush://",
            "://hush",
        ] {
            let error = choose("https://portal.example", &[("HTTPS_PROXY", value)]).expect_err(value);
            let line = error.to_string();
            assert!(line.starts_with("HTTPS_PROXY: not a usable proxy"), "{value}: {line}");
            assert!(!line.contains("hush"), "{value}: {line}");
        }
        let proxy = choose("https://portal.example", &[("HTTPS_PROXY", "http://user:hush@p:1")]);
        let proxy = proxy.expect("usable").expect("chosen");
        assert!(!format!("{proxy} {proxy:?}").contains("hush"), "{proxy:?}");
    }

    #[test]
    fn no_proxy_lists() {
        for (list, host, bypassed) in [
            ("*", "portal.example", true),
            ("a,*", "portal.example", false),
            (" *", "portal.example", false),
            ("", "portal.example", false),
            (",, ,", "portal.example", false),
            (".", "portal.example", false),
            ("example", "portal.example", true),
            (".example", "portal.example", true),
            (".portal.example", "portal.example", true),
            ("portal.example.", "portal.example", true),
            ("portal.example", "portal.example.", true),
            ("ortal.example", "portal.example", false),
            ("portal.example", "example", false),
            ("PORTAL.Example", "portal.example", true),
            ("one two,three", "two", true),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.11", false),
            ("0.0.1", "127.0.0.1", false),
            ("127.0.0.0/8", "127.9.9.9", true),
            ("10.0.0.0/9", "10.128.0.1", false),
            ("10.0.0.0/0", "192.0.2.1", false),
            ("192.0.2.1/0", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.1", true),
            ("192.0.2.1/33", "192.0.2.1", false),
            ("::1/129", "::1", false),
            ("10.0.0.0/x", "10.0.0.1", false),
            ("::1", "::1", true),
            ("[::1]", "::1", false),
            ("2001:db8::/32", "2001:db8:1::5", true),
            ("2001:db8::/32", "2001:db9::5", false),
            ("127.0.0.1", "::1", false),
        ] {
            assert_eq!(bypasses(list, host), bypassed, "{list:?} {host}");
        }
    }
}
