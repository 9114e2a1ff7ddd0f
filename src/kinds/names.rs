//! Generated names.

/// Letters and digits that make no words and are not mistaken for one another.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Names are at most this long where a suffix is added.
const LONGEST_BASE: usize = 58;

/// `base` and five random characters, as for `metadata.generateName`. A long base is cut so that the name has at most 63
/// characters.
pub fn generate(base: &str) -> String {
    let end = (0..=base.len().min(LONGEST_BASE)).rev().find(|i| base.is_char_boundary(*i)).unwrap_or(0);
    let mut random = uuid::Uuid::new_v4().as_u64_pair().1;
    let mut name = base[..end].to_owned();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[(random % 27) as usize]));
        random /= 27;
    }
    name
}

/// Text as characters of the safe alphabet, one for one.
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_are_not_too_long() {
        let (a, b) = (generate("web-"), generate("web-"));
        assert_ne!(a, b);
        assert!(a.starts_with("web-") && a.len() == 9, "{a}");
        assert_eq!(generate(&"x".repeat(100)).len(), 63);
    }

    #[test]
    fn encoding_is_stable() {
        assert_eq!(safe_encode("0123456789"), "45678 9bcdf".replace(' ', "").as_str());
    }
}
