//! How long to wait before the next attempt. Pure.

use std::time::Duration;

use crate::reply::Reply;

/// The longest wait that a portal may ask for: no run may take longer.
const MAX_WAIT: Duration = Duration::from_secs(86400);

/// The wait after attempt number `attempt`, counted from 0: doubled from 1 s to 30 s, unless the
/// reply asks for another.
pub fn wait(attempt: u32, reply: Option<&Reply>) -> Duration {
    let doubled = Duration::from_secs(1 << attempt.min(5)).min(Duration::from_secs(30));
    // A portal that keeps asking for next to no wait must not be flooded.
    reply.and_then(requested).map_or(doubled, |wait| wait.max(doubled / 100))
}

/// The wait that the reply asks for: `Retry-After` in seconds (RFC 9110, section 10.2.3), else on a
/// 429 the `X-RateLimit-Reset` of the identity service, which counts nanoseconds (observed). None
/// where the value can't be meant, such as 0.
fn requested(reply: &Reply) -> Option<Duration> {
    let number = |text: &Option<String>| text.as_deref()?.trim().parse::<u64>().ok();
    let after = number(&reply.retry_after).map(Duration::from_secs);
    let reset = number(&reply.rate_limit_reset).filter(|_| reply.status == 429);
    let reset = reset.map(|reset| match reset {
        // Other services count seconds, and no limit ends within the millisecond.
        0..=3600 => Duration::from_secs(reset),
        _ => Duration::from_nanos(reset),
    });
    let plausible = |wait: &Duration| (Duration::from_millis(1)..=MAX_WAIT).contains(wait);
    after.filter(plausible).or(reset.filter(plausible))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, retry_after: Option<&str>, reset: Option<&str>) -> Reply {
        Reply {
            status,
            retry_after: retry_after.map(str::to_owned),
            rate_limit_reset: reset.map(str::to_owned),
            ..Reply::default()
        }
    }

    #[test]
    fn waits_double_from_one_second_to_thirty() {
        let seconds: Vec<u64> = (0..8).map(|attempt| wait(attempt, None).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(wait(u32::MAX, None), Duration::from_secs(30));
        assert_eq!(wait(2, Some(&reply(503, None, None))), Duration::from_secs(4));
    }

    #[test]
    fn a_plausible_request_replaces_the_wait() {
        let huge = "9".repeat(30);
        for (status, retry_after, reset, wanted) in [
            (429, Some("7"), None, 7_000),
            (503, Some(" 7 "), None, 7_000),
            (503, Some("86400"), None, 86_400_000),
            (429, None, Some("3600"), 3_600_000),
            (429, Some("7"), Some("3445000000"), 7_000),
            (429, None, Some("3445000000"), 3_445),
            (429, None, Some("3348000000"), 3_348),
            (429, None, Some("30000000"), 30),
            // No less than a hundredth of the series.
            (429, None, Some("10000000"), 20),
            (429, None, Some("60"), 60_000),
            (429, Some("Wed, 21 Oct 2026 07:28:00 GMT"), Some("1000000"), 20),
            (429, Some("86401"), Some("2000000000"), 2_000),
            // Not plausible: the second wait of the series.
            (503, None, Some("3445000000"), 2_000),
            (429, Some("0"), None, 2_000),
            (429, Some("-1"), Some("-1"), 2_000),
            (429, Some(""), Some(""), 2_000),
            (429, Some("soon"), Some("1.5"), 2_000),
            (429, Some("86401"), None, 2_000),
            (429, Some(&huge), Some(&huge), 2_000),
            (429, None, Some("0"), 2_000),
            (429, None, Some("999999"), 2_000),
            (429, None, Some("86400000000001"), 2_000),
            (429, None, Some("18446744073709551615"), 2_000),
        ] {
            let waited = wait(1, Some(&reply(status, retry_after, reset)));
            assert_eq!(waited, Duration::from_millis(wanted), "{status} {retry_after:?} {reset:?}");
        }
    }
}
