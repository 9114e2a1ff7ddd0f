//! Resource quantities such as `100m`, `1.5Gi` or `2e3` (`k8s.io/apimachinery/pkg/api/resource`).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde_json::Value;

use super::Object;

const NANO: i128 = 1_000_000_000;
/// Kubernetes caps quantities at the largest 64-bit integer.
const MOST: i128 = i64::MAX as i128 * NANO;

/// An exact amount of something in units of 10⁻⁹, with the suffix style it was written in. Comparisons ignore the style.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nano: i128,
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `Ki`, `Mi`, …
    Binary,
    /// `m`, `k`, `M`, …
    Decimal,
    /// `e3`
    Exponent,
}

/// A text that is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A number followed by something that is no known suffix.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    /// Nothing, in decimal style.
    pub const ZERO: Self = Self { nano: 0, style: Style::Decimal };

    /// A whole number of units, for example cores or pods.
    pub fn units(value: i64) -> Self {
        Self { nano: i128::from(value) * NANO, style: Style::Decimal }
    }

    /// Thousandths of a unit, for example millicores.
    pub fn milli(value: i64) -> Self {
        Self { nano: i128::from(value) * (NANO / 1000), style: Style::Decimal }
    }

    /// Bytes, written with binary suffixes.
    pub fn bytes(value: i64) -> Self {
        Self { nano: i128::from(value) * NANO, style: Style::Binary }
    }

    /// Reads a quantity of JSON: a string or a number.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    /// Whole units, rounded away from zero.
    pub fn value(self) -> i64 {
        clamp(div_up(self.nano, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(self) -> i64 {
        clamp(div_up(self.nano, NANO / 1000))
    }

    /// Rounded away from zero to thousandths, the finest amount of a container resource.
    pub fn to_milli(self) -> Self {
        Self { nano: div_up(self.nano, NANO / 1000) * (NANO / 1000), ..self }
    }

    /// Whether it is zero.
    pub fn is_zero(self) -> bool {
        self.nano == 0
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.nano < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nano % NANO == 0
    }
}

fn clamp(value: i128) -> i64 {
    value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// Division rounded away from zero.
fn div_up(value: i128, by: i128) -> i128 {
    value / by + if value % by == 0 { 0 } else { value.signum() }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (style, binary, decimal) = parse_suffix(suffix)?;
        let nano = scale(whole, fraction, binary, decimal + 9).min(MOST);
        Ok(Self { nano: if text.starts_with('-') { -nano } else { nano }, style })
    }
}

/// The style, power of two and power of ten of a suffix.
fn parse_suffix(suffix: &str) -> Result<(Style, u32, i32), QuantityError> {
    if let Some((_, power)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Style::Binary, *power, 0));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Style::Decimal, 0, *power));
    }
    let power = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    if !power.strip_prefix(['+', '-']).unwrap_or(power).bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QuantityError::Format);
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let power: i32 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((Style::Exponent, 0, power.clamp(-1000, 1000)))
}

/// `whole.fraction * 2^binary * 10^decimal`, rounded up to a whole number; at most [`MOST`].
fn scale(whole: &str, fraction: &str, binary: u32, decimal: i32) -> i128 {
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').skip_while(|d| *d == 0).collect();
    if digits.is_empty() {
        return 0;
    }
    // How many of the digits stand before the decimal point of the result, before the binary factor.
    let point = digits.len() as i64 - fraction.len() as i64 + i64::from(decimal);
    if point > 29 {
        return MOST;
    }
    let mut value: i128 = 0;
    let mut rest = false;
    // Nine digits more than needed keep what the binary factor would lift above the decimal point.
    let kept = point + if binary > 0 { 9 } else { 0 };
    for (i, digit) in digits.iter().enumerate() {
        if (i as i64) < kept {
            value = value * 10 + i128::from(*digit);
        } else {
            rest |= *digit != 0;
        }
    }
    for _ in digits.len() as i64..kept {
        value = value.saturating_mul(10);
    }
    if kept <= 0 && digits.iter().any(|d| *d != 0) {
        return 1;
    }
    if binary > 0 {
        let factor = 1i128 << binary;
        value = value.checked_mul(factor).map_or(MOST, |v| div_up(v, NANO));
    }
    value.saturating_add(i128::from(rest)).min(MOST)
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        let small = self.nano.abs() < 1024 * NANO;
        // With a fraction it is written decimally: rounding would change the amount.
        if self.style == Style::Binary && !small && self.is_whole() {
            let mut value = self.nano / NANO;
            let mut suffix = "";
            for (name, _) in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = name;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = self.nano;
        let mut at = 0;
        while value % 1000 == 0 && at + 1 < DECIMAL.len() {
            value /= 1000;
            at += 1;
        }
        match DECIMAL[at] {
            (_, power) if self.style == Style::Exponent && power != 0 => write!(f, "{value}e{power}"),
            (suffix, _) => write!(f, "{value}{suffix}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum in the style of the first addend that is not zero.
    fn add(self, other: Self) -> Self {
        let style = if self.is_zero() { other.style } else { self.style };
        Self { nano: self.nano.saturating_add(other.nano), style }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { nano: self.nano.saturating_sub(other.nano), style: self.style }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

/// Rewrites a quantity in its canonical form; what is no quantity stays for validation to report.
pub fn canonicalize(value: &mut Value) {
    if let Ok(quantity) = Quantity::from_json(value) {
        *value = quantity.to_string().into();
    }
}

/// Rewrites the quantities of a list of resources (`{"cpu": 0.5}`) in canonical form, to thousandths.
pub fn canonicalize_list(list: &mut Object) {
    for value in list.values_mut() {
        if let Ok(quantity) = Quantity::from_json(value) {
            *value = quantity.to_milli().to_string().into();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0m", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1000m", "1"),
            ("100m", "100m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1023", "1023"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("1E", "1E"),
            ("100M", "100M"),
            ("-1", "-1"),
            ("+2k", "2k"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.1Mi", "104857600m"),
            ("128974848", "128974848"),
            ("99999999999999999999", "9223372036854775807"),
            ("1e100", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("64Mi", "64Mi"),
            ("1e-3", "1e-3"),
            ("0.25", "250m"),
            ("1e-30", "1e-9"),
        ];
        for (text, canonical) in cases {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!(quantity.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in ["", "m", "1.2.3", "--1", ".", "+", "1x", "1 Gi", "1GiB", "64MB", "1e1.5"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Format), "{text}");
        }
        for text in ["1e", "1Kin", "1K", "1ki", "1e99999999999", "1Mi5"] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Suffix), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |t: &str| t.parse::<Quantity>().unwrap();
        assert!(q("1Gi") > q("1G"));
        assert_eq!(q("0.5"), q("500m"));
        assert_eq!((q("250m") + q("750m")).to_string(), "1");
        assert_eq!((q("1Gi") - q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("100m").milli_value(), 100);
        assert_eq!(q("1001u").milli_value(), 2);
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("64Mi").value(), 64 << 20);
        assert_eq!([q("1"), q("200m")].into_iter().sum::<Quantity>().to_string(), "1200m");
        assert_eq!(Quantity::bytes(3 << 30).to_string(), "3Gi");
    }
}
