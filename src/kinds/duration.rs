//! Durations for people, as `kubectl get` prints ages (`k8s.io/apimachinery/pkg/util/duration`).

use jiff::Timestamp;

use super::{Object, meta};

/// Seconds as two or three significant figures: `90s`, `5m30s`, `3h`, `2d4h`, `400d`, `3y10d`.
pub fn human(seconds: i64) -> String {
    const DAY: i64 = 24;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match () {
        // Clocks of two machines may differ a little.
        () if seconds < -1 => "<invalid>".to_owned(),
        () if seconds < 0 => "0s".to_owned(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 2 * DAY => format!("{hours}h"),
        () if hours < 8 * DAY => pair(hours / DAY, "d", hours % DAY, "h"),
        () if hours < 2 * 365 * DAY => format!("{}d", hours / DAY),
        () if hours < 8 * 365 * DAY => pair(hours / DAY / 365, "y", hours / DAY % 365, "d"),
        () => format!("{}y", hours / DAY / 365),
    }
}

/// The time since `then`, `<unknown>` if there is no such time.
pub fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".to_owned(), |then| human(now.duration_since(then).as_secs()))
}

/// The time since an object was created.
pub fn age(object: &Object, now: Timestamp) -> String {
    since(meta::created(object), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_kubectl_prints_them() {
        let (m, h, d) = (60, 3600, 86400);
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (9 * m + 59, "9m59s"),
            (10 * m, "10m"),
            (179 * m, "179m"),
            (3 * h, "3h"),
            (7 * h + 59 * m, "7h59m"),
            (8 * h, "8h"),
            (47 * h, "47h"),
            (2 * d, "2d"),
            (2 * d + h, "2d1h"),
            (8 * d, "8d"),
            (729 * d, "729d"),
            (730 * d, "2y"),
            (731 * d, "2y1d"),
            (8 * 365 * d, "8y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human(seconds), expected);
        }
    }
}
