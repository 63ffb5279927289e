//! Numbers with their units, as people read them.
//!
//! Promises: three significant digits, one meaning for each unit, and a dash for what is no number.
//! Never does: round before arithmetic; what is shown is not computed with.

/// `0.42`, `4.25`, `42.5`, `425`: three significant digits, without zeros at the end.
pub(crate) fn plain(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let digits = match value.abs() {
        size if size < 1e-9 => return "0".into(),
        size if size < 0.0005 => return format!("{value:.1e}"),
        size if size < 0.01 => 4,
        size if size < 0.995 => 3,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// `0`, `999`, `12.3 k`, `4.5 M`.
pub(crate) fn count(value: f64) -> String {
    scaled(value, &[(1e9, " G"), (1e6, " M"), (1e3, " k")], "")
}

/// `40 ns`, `850 µs`, `12.3 ms`, `4.2 s`. The value is in nanoseconds.
pub(crate) fn nanos(value: f64) -> String {
    scaled(value, &[(1e9, " s"), (1e6, " ms"), (1e3, " µs")], " ns")
}

/// `4.2 s`, `12 min 34 s`. The value is in seconds.
pub(crate) fn span(seconds: f64) -> String {
    if !(120.0..1e9).contains(&seconds) {
        return nanos(seconds * 1e9);
    }
    let minutes = (seconds / 60.0).floor();
    format!("{minutes:.0} min {:.0} s", (seconds - minutes * 60.0).floor())
}

/// `22.4 MiB`.
pub(crate) fn bytes(value: f64) -> String {
    const KIB: f64 = 1024.0;
    scaled(value, &[(KIB * KIB * KIB, " GiB"), (KIB * KIB, " MiB"), (KIB, " KiB")], " B")
}

/// `3.2 %`. The value is a share of 1.
pub(crate) fn percent(value: f64) -> String {
    format!("{} %", plain(value * 100.0))
}

/// `1,234,567`: every digit, for counts that must be exact.
pub(crate) fn exact(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn scaled(value: f64, units: &[(f64, &str)], smallest: &str) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    for (size, unit) in units {
        // What would round up to the next unit is shown in it.
        if value.abs() >= size * 0.9995 {
            return format!("{}{unit}", plain(value / size));
        }
    }
    format!("{}{smallest}", plain(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        let plains = [0.0, 0.0004, 0.0052, 0.4251, 1.0, 4.2, 42.55, 425.4, 4254.0].map(plain);
        assert_eq!(plains, ["0", "4.0e-4", "0.0052", "0.425", "1", "4.2", "42.5", "425", "4254"]);
        let counts = [0.0, 12.0, 999.0, 999.9, 12_345.0, 4_500_000.0].map(count);
        assert_eq!(counts, ["0", "12", "999", "1 k", "12.3 k", "4.5 M"]);
        let times = [40.0, 850_000.0, 1.234e7, 9.9999e8, 4.2e9].map(nanos);
        assert_eq!(times, ["40 ns", "850 µs", "12.3 ms", "1 s", "4.2 s"]);
        assert_eq!([4.2, 119.0, 754.9].map(span), ["4.2 s", "119 s", "12 min 34 s"]);
        assert_eq!(bytes(23_488_102.0), "22.4 MiB");
        assert_eq!(percent(0.0325), "3.25 %");
        assert_eq!(exact(1_234_567), "1,234,567");
        assert_eq!([f64::NAN, f64::INFINITY].map(nanos), ["–", "–"]);
    }
}
