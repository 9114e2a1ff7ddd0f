//! `resource.Quantity` texts in the form Go writes them after reading them (`1000m` becomes `1`, `1024Mi` `1Gi`).

use std::borrow::Cow;

/// Why a text is not a quantity, worded as `k8s.io/apimachinery/pkg/api/resource` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not digits and a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that stands for nothing.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    /// `k`, `M`, … powers of 1000.
    Decimal,
    /// `e3`, `E6`.
    Exponent,
    /// `Ki`, `Mi`, … powers of 1024.
    Binary,
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, i32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// Digits beyond this are kept as they are: no real quantity has them, and i128 could not hold the products.
const MAX_DIGITS: usize = 18;

/// The canonical form of a quantity.
///
/// # Errors
/// If the text is not a quantity.
pub fn canonical(text: &str) -> Result<Cow<'_, str>, Error> {
    let text = text.trim();
    let parts = split(text)?;
    let (format, exponent) = interpret(parts.suffix)?;
    let digits = format!("{}{}", parts.whole, parts.fraction);
    if digits.bytes().all(|digit| digit == b'0') {
        return Ok("0".into());
    }
    if keeps_its_form(&parts, format, exponent, &digits) {
        return Ok(text.into());
    }
    let Ok(value) = digits.parse::<i128>() else { return Ok(text.into()) };
    let value = if parts.negative { -value } else { value };
    let scale = -(parts.fraction.len() as i32);
    Ok(match format {
        Format::Binary => binary(value, scale, exponent),
        Format::Decimal | Format::Exponent => decimal(value, scale + exponent, format),
    }
    .map_or(text.into(), Cow::Owned))
}

struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, Error> {
    let digits_end = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if text.is_empty() {
        return Err(Error::Format);
    }
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, rest) = unsigned.split_at(digits_end(unsigned));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits_end(rest)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(Error::Format);
    }
    let letters = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let number = letters.strip_prefix(['-', '+']).unwrap_or(letters);
    if digits_end(number) != number.len() {
        return Err(Error::Format);
    }
    Ok(Parts { negative, whole: whole.trim_start_matches('0'), fraction, suffix })
}

fn interpret(suffix: &str) -> Result<(Format, i32), Error> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Decimal, *exponent));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Binary, *exponent));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse().ok()).ok_or(Error::Suffix)?;
    if !(-1000..=1000).contains(&exponent) {
        return Err(Error::Suffix);
    }
    Ok((Format::Exponent, exponent))
}

/// Go keeps the text of numbers that its quick look takes for canonical.
fn keeps_its_form(parts: &Parts, format: Format, exponent: i32, digits: &str) -> bool {
    if digits.len() > MAX_DIGITS {
        return false;
    }
    match format {
        Format::Binary => {
            let room = 15 - parts.whole.len() as i32 - exponent * 3 / 10 - 1;
            room >= 0 && parts.fraction.is_empty() && digits.parse::<u64>().is_ok_and(|value| value & 7 != 0)
        }
        _ => {
            let scale = exponent - parts.fraction.len() as i32;
            scale >= -9 && scale % 3 == 0 && !digits.ends_with("000") && !parts.whole.is_empty()
        }
    }
}

/// `value * 10^scale * 2^exponent`; with a suffix of its own only if that is exact.
fn binary(value: i128, scale: i32, exponent: i32) -> Option<String> {
    let value = value.checked_mul(1 << exponent)?;
    let unit = 10i128.checked_pow(scale.unsigned_abs())?;
    let max = i128::from(i64::MAX);
    if value % unit != 0 || (value / unit).abs() < 1024 {
        return decimal(value, scale, Format::Decimal);
    }
    let mut amount = (value / unit).clamp(-max, max);
    let mut power = 0;
    while amount % 1024 == 0 {
        amount /= 1024;
        power += 1;
    }
    let suffix = power_name(&BINARY, power * 10).unwrap_or_default();
    Some(format!("{amount}{suffix}"))
}

/// `value * 10^scale`, rounded up to whole nano.
fn decimal(mut value: i128, mut scale: i32, format: Format) -> Option<String> {
    while scale < -9 {
        let up = if value % 10 == 0 { 0 } else { value.signum() };
        value = value / 10 + up;
        scale += 1;
    }
    while value % 10 == 0 {
        value /= 10;
        scale += 1;
    }
    while scale % 3 != 0 {
        value = value.checked_mul(10)?;
        scale -= 1;
    }
    match format {
        Format::Exponent if scale != 0 => Some(format!("{value}e{scale}")),
        Format::Exponent => Some(value.to_string()),
        _ => power_name(&DECIMAL, scale).map(|suffix| format!("{value}{suffix}")),
    }
}

fn power_name(table: &'static [(&'static str, i32)], exponent: i32) -> Option<&'static str> {
    table.iter().find(|(_, power)| *power == exponent).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("00", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.5", "1500m"),
            ("1000", "1k"),
            ("1234", "1234"),
            ("100", "100"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1E4", "10e3"),
            ("1024Mi", "1Gi"),
            ("512Mi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("0.5Ki", "512"),
            ("0.1Mi", "104857600m"),
            ("100Mi", "100Mi"),
            ("64Gi", "64Gi"),
            ("8Ei", "9223372036854775807"),
            ("0.0000000001", "1n"),
            ("-1000m", "-1"),
            ("+1", "+1"),
            ("1.", "1."),
            ("200000M", "200G"),
            ("128974848", "128974848"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            (" 1 ", "1"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn bad_quantities_are_refused() {
        for (text, want) in [
            ("", Error::Format),
            ("abc", Error::Format),
            ("1 Gi", Error::Format),
            ("1.2.3", Error::Format),
            ("--1", Error::Format),
            (".", Error::Format),
            ("1GB", Error::Format),
            ("1ki", Error::Suffix),
            ("1mi", Error::Suffix),
            ("1e", Error::Suffix),
            ("1e99999999999", Error::Suffix),
        ] {
            assert_eq!(canonical(text), Err(want), "{text}");
        }
    }
}
