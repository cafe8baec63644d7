//! The portal's address, and the choice of the proxy on the way to it.

use std::net::IpAddr;

use ureq::http::Uri;
use ureq::http::uri::Authority;

use crate::error::Error;

#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    pub text: String,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub https: bool,
}

impl Url {
    /// Parses an address. An error does not show it: it may contain a password.
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        // `Uri` drops a fragment.
        if text.contains(['?', '#']) {
            return Err(
                "the address has a query ('?') or fragment ('#'): give the portal's own address",
            );
        }
        let uri: Uri = text
            .trim()
            .parse()
            .map_err(|_| "write the address as https://host[:port][/path]")?;
        let (https, authority) = match (uri.scheme_str(), uri.authority()) {
            (Some("https"), Some(authority)) => (true, authority),
            (Some("http"), Some(authority)) => (false, authority),
            _ => return Err("the address must begin with https:// (or http://)"),
        };
        if authority.as_str().contains('@') {
            return Err(
                "the address has a user or password before '@': the key goes in DOCSPACE_API_KEY",
            );
        }
        let host = usable_host(authority)
            .ok_or("the host or the port is not usable")?
            .to_ascii_lowercase();
        let scheme = if https { "https" } else { "http" };
        let (authority, path) = (
            authority.as_str().to_ascii_lowercase(),
            uri.path().trim_end_matches('/'),
        );
        Ok(Url {
            text: format!("{scheme}://{authority}{path}"),
            host,
            https,
        })
    }
}

/// Returns the host without brackets if host and port are usable. `Uri` drops an invalid port.
fn usable_host(authority: &Authority) -> Option<&str> {
    let (host, after) = (authority.host(), authority.as_str().rsplit('@').next()?);
    let port = after.strip_prefix(host)?;
    let usable = port.is_empty() || authority.port_u16().is_some_and(|port| port > 0);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    (usable && !bare.is_empty()).then_some(bare)
}

pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// Returns the target of a redirect: scheme, host and path. The rest, and what is escaped, may contain secrets.
pub fn redirect_target(location: &str) -> String {
    let address = location.split(['%', '\\']).next().unwrap_or_default();
    let Ok(uri) = address.parse::<Uri>() else {
        return "another address".to_owned();
    };
    let host = uri
        .authority()
        .and_then(|authority| authority.as_str().rsplit('@').next());
    let origin = uri
        .scheme_str()
        .zip(host)
        .map(|(scheme, host)| format!("{scheme}://{host}"));
    origin.unwrap_or_default() + uri.path()
}

#[derive(Debug)]
pub struct Proxy {
    pub variable: &'static str,
    /// `host:port`
    pub address: String,
    pub inner: ureq::Proxy,
}

impl Proxy {
    /// Chooses the proxy as curl does. `HTTP_PROXY` is never read: a CGI server sets it from a request's header.
    pub fn choose(
        url: &Url,
        env: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Option<Proxy>, Error> {
        let variables: &[&'static str] = match url.https {
            true => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
            false => &["http_proxy", "all_proxy", "ALL_PROXY"],
        };
        let first =
            |names: &[&'static str]| names.iter().find_map(|name| Some((*name, env(name)?)));
        if first(&["no_proxy", "NO_PROXY"]).is_some_and(|(_, list)| bypasses(&list, &url.host)) {
            return Ok(None);
        }
        let Some((variable, value)) = first(variables) else {
            return Ok(None);
        };
        let why = "write [http|https|socks4|socks5]://[user:password@]host[:port], special characters as %XX";
        let unusable = || Error::usage(format!("{variable} is not a usable proxy: {why}"));
        let inner = usable_proxy(value.trim()).ok_or_else(unusable)?;
        Ok(Some(Proxy {
            variable,
            address: format!("{}:{}", inner.host(), inner.port()),
            inner,
        }))
    }
}

fn usable_proxy(value: &str) -> Option<ureq::Proxy> {
    let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        // In these forms the proxy resolves the portal's name.
        "socks" | "socks5" => "socks5h".to_owned(),
        "socks4" => "socks4a".to_owned(),
        other => other.to_owned(),
    };
    let proxy = ureq::Proxy::new(&format!("{scheme}://{rest}")).ok()?;
    usable_host(proxy.uri().authority()?)?;
    // SOCKS5 needs a password with a user (RFC 1929). A slash in the password ends the host too early.
    let needs_password = scheme == "socks5h" && proxy.username().is_some();
    let lacks_password = needs_password && proxy.password().is_none_or(str::is_empty);
    (!lacks_password && !proxy.uri().path().contains('@')).then_some(proxy)
}

/// Returns true if the list covers the host: with `*`, its address, a block of addresses, or a name above it.
fn bypasses(list: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.');
    let covers = |entry: &str| match host.parse::<IpAddr>() {
        Ok(ip) => covers_ip(entry, ip),
        Err(_) => {
            let entry = entry.trim_matches('.').to_ascii_lowercase();
            let above = host.strip_suffix(&entry);
            !entry.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        }
    };
    list.trim() == "*" || list.split([',', ' ', '\t']).any(covers)
}

fn covers_ip(entry: &str, ip: IpAddr) -> bool {
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let (address, bits) = match entry.split_once('/') {
        Some((address, bits)) => (address, bits.parse::<u32>().unwrap_or(u32::MAX)),
        None => (entry, max),
    };
    let same = match (address.parse(), ip) {
        (Ok(IpAddr::V4(a)), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (Ok(IpAddr::V6(a)), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    bits <= max && same >= bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, shown, host, loopback) in [
            (
                "https://portal.example",
                "https://portal.example",
                "portal.example",
                false,
            ),
            (
                " https://Portal.Example/\n",
                "https://portal.example",
                "portal.example",
                false,
            ),
            (
                "HTTPS://portal.example:8443/Docs//",
                "https://portal.example:8443/Docs",
                "portal.example",
                false,
            ),
            (
                "http://my_portal:80",
                "http://my_portal:80",
                "my_portal",
                false,
            ),
            (
                "http://localhost:8092",
                "http://localhost:8092",
                "localhost",
                true,
            ),
            ("http://127.9.8.7", "http://127.9.8.7", "127.9.8.7", true),
            ("http://[::1]:80/x", "http://[::1]:80/x", "::1", true),
            (
                "https://[2001:DB8::1]",
                "https://[2001:db8::1]",
                "2001:db8::1",
                false,
            ),
            (
                "http://127.0.0.1.invalid",
                "http://127.0.0.1.invalid",
                "127.0.0.1.invalid",
                false,
            ),
            (
                "http://localhost.invalid",
                "http://localhost.invalid",
                "localhost.invalid",
                false,
            ),
            (
                "http://notlocalhost",
                "http://notlocalhost",
                "notlocalhost",
                false,
            ),
            ("http://127.1", "http://127.1", "127.1", false),
            (
                "http://[::ffff:127.0.0.1]",
                "http://[::ffff:127.0.0.1]",
                "::ffff:127.0.0.1",
                false,
            ),
        ] {
            let url = Url::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((url.text.as_str(), url.host.as_str()), (shown, host));
            assert_eq!(is_loopback(&url.host), loopback, "{text}");
        }
    }

    #[test]
    fn unusable_urls() {
        for (text, why) in [
            ("", "write the address as"),
            ("portal.example", "begin with https://"),
            ("ftp://portal.example", "begin with https://"),
            ("https://", "write the address as"),
            ("https:///path", "write the address as"),
            ("https://portal example", "write the address as"),
            ("https://[::1", "write the address as"),
            ("https://user@portal.example", "before '@'"),
            ("https://user:password@portal.example", "before '@'"),
            ("https://portal.example?x", "query"),
            ("https://portal.example/#x", "fragment"),
            ("https://:8443", "not usable"),
            ("https://portal.example:", "not usable"),
            ("https://portal.example:0", "not usable"),
            ("https://portal.example:65536", "not usable"),
            ("https://portal.example:1x", "not usable"),
        ] {
            let error = Url::parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    fn choose(url: &str, env: &[(&str, &str)]) -> Result<Option<String>, String> {
        let value = |name: &str| {
            env.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        let chosen = Proxy::choose(&Url::parse(url).expect("usable"), value);
        let shown = |proxy: Proxy| {
            format!(
                "{} {:?} {}",
                proxy.variable,
                proxy.inner.protocol(),
                proxy.address
            )
        };
        chosen
            .map(|proxy| proxy.map(shown))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_proxy_is_chosen_as_curl_does() {
        let all = [
            ("all_proxy", "a"),
            ("ALL_PROXY", "A"),
            ("HTTP_PROXY", "never"),
        ];
        for (url, env, chosen) in [
            ("https://p.example", &[][..], None),
            ("https://p.example", &all, Some("all_proxy Http a:80")),
            (
                "https://p.example",
                &[("HTTPS_PROXY", "B:1"), all[0]],
                Some("HTTPS_PROXY Http B:1"),
            ),
            (
                "https://p.example",
                &[("https_proxy", "b:1"), ("HTTPS_PROXY", "B")],
                Some("https_proxy Http b:1"),
            ),
            ("https://p.example", &[("http_proxy", "c")], None),
            (
                "http://p.example",
                &[("http_proxy", "c:1"), ("https_proxy", "b")],
                Some("http_proxy Http c:1"),
            ),
            ("http://p.example", &[all[2]], None),
            (
                "https://p.example",
                &[all[0], ("NO_PROXY", "example")],
                None,
            ),
            (
                "https://p.example",
                &[all[0], ("no_proxy", "x"), ("NO_PROXY", "*")],
                Some("all_proxy Http a:80"),
            ),
            (
                "https://p.example",
                &[("ALL_PROXY", " https://u:p@[::1]:3 ")],
                Some("ALL_PROXY Https [::1]:3"),
            ),
            (
                "https://p.example",
                &[("ALL_PROXY", "SOCKS5://h")],
                Some("ALL_PROXY Socks5h h:1080"),
            ),
            (
                "https://p.example",
                &[("ALL_PROXY", "socks://h")],
                Some("ALL_PROXY Socks5h h:1080"),
            ),
            (
                "https://p.example",
                &[("ALL_PROXY", "socks5h://u:p@h")],
                Some("ALL_PROXY Socks5h h:1080"),
            ),
            (
                "https://p.example",
                &[("ALL_PROXY", "socks4://h:2")],
                Some("ALL_PROXY Socks4A h:2"),
            ),
        ] {
            assert_eq!(
                choose(url, env),
                Ok(chosen.map(str::to_owned)),
                "{url} {env:?}"
            );
        }
    }

    #[test]
    fn an_unusable_proxy_is_an_error_that_hides_it() {
        for value in [
            "quic://hush",
            "http://",
            "http://hush:99999",
            "hush:1x",
            "http://us er:hush@p",
            "http://user:hu/sh@p:1",
            "http://user:1/hush@p",
            "socks5://hush@p",
            "socks5://hush:@p",
            "http://:1",
        ] {
            let error = choose("https://p.example", &[("HTTPS_PROXY", value)]).expect_err(value);
            assert!(
                error.starts_with("HTTPS_PROXY is not a usable proxy: ") && !error.contains("hush"),
                "{error}"
            );
        }
        let proxy = usable_proxy("http://user:hush@p:1").expect("usable");
        assert!(!format!("{proxy:?}").contains("hush"));
    }

    #[test]
    fn no_proxy_lists() {
        for (list, host, bypassed) in [
            ("*", "portal.example", true),
            (" * ", "portal.example", true),
            ("", "portal.example", false),
            (",, .,", "portal.example", false),
            ("example", "portal.example", true),
            (".portal.example.", "portal.example", true),
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
            ("0.0.0.0/0", "192.0.2.1", true),
            ("192.0.2.1/32", "192.0.2.1", true),
            ("192.0.2.1/33", "192.0.2.1", false),
            ("::1/129", "::1", false),
            ("10.0.0.0/x", "10.0.0.1", false),
            ("::1", "::1", true),
            ("2001:db8::/32", "2001:db8:1::5", true),
            ("2001:db8::/32", "2001:db9::5", false),
            ("127.0.0.1", "::1", false),
        ] {
            assert_eq!(bypasses(list, host), bypassed, "{list:?} {host}");
        }
    }
}
