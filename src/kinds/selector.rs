//! Label selectors (text and object form) and field selectors (`k8s.io/apimachinery/pkg/labels`, `…/fields`).

use std::fmt;

use serde_json::Value;

use super::status::FieldError;
use super::{Object, format, meta};

/// A label selector: all requirements must hold. Without requirements it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// A selector that could not be read; the text is the API server's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(String);

impl LabelSelector {
    /// Reads the text form, for example `app=web,tier in (a, b),!legacy`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { tokens: tokens(text), at: 0 };
        let mut requirements = parser.requirements().map_err(SelectorError)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements })
    }

    /// Reads the object form with `matchLabels` and `matchExpressions`. `None` (no selector at all) selects nothing,
    /// an empty object everything; here the caller has an object. Unknown operators select nothing.
    pub fn from_object(selector: &Object) -> Self {
        let mut requirements: Vec<Requirement> = Vec::new();
        for (key, value) in meta::sub(selector, "matchLabels").into_iter().flatten() {
            requirements.push(equals(key, value));
        }
        for expression in meta::items(selector, "matchExpressions") {
            let operator = match meta::text(expression, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                // `In` no value: never true.
                _ => {
                    requirements.push(Requirement { key: String::new(), operator: Operator::In, values: Vec::new() });
                    continue;
                }
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let mut values: Vec<String> = values.filter_map(Value::as_str).map(str::to_owned).collect();
            values.sort();
            requirements.push(Requirement { key: meta::text(expression, "key").to_owned(), operator, values });
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements }
    }

    /// A plain map of labels that must all be there, as in a Service or a ReplicationController.
    pub fn from_map(map: &Object) -> Self {
        Self { requirements: map.iter().map(|(key, value)| equals(key, value)).collect() }
    }

    /// The `spec.selector` of any kind: its object form, or the plain map of a ReplicationController or Service, which
    /// holds nothing but texts.
    pub fn of_spec(selector: &Object) -> Self {
        if selector.values().any(Value::is_string) { Self::from_map(selector) } else { Self::from_object(selector) }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it matches an object's `metadata.labels`.
    pub fn matches(&self, object: &Object) -> bool {
        self.matches_labels(meta::labels(object))
    }

    /// Whether it matches a map of labels.
    pub fn matches_labels(&self, labels: Option<&Object>) -> bool {
        self.requirements.iter().all(|r| r.matches(labels.and_then(|l| l.get(&r.key)).and_then(Value::as_str)))
    }
}

fn equals(key: &str, value: &Value) -> Requirement {
    let values = vec![value.as_str().unwrap_or_default().to_owned()];
    Requirement { key: key.to_owned(), operator: Operator::Equals, values }
}

impl Requirement {
    fn new(key: String, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        values.sort();
        values.dedup();
        let mut wrong = Vec::new();
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
            let no_integer = values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err());
            wrong.extend(no_integer.map(|(i, v)| FieldError::invalid(format!("values[{i}]"), v.as_str(), detail)));
        }
        for (i, value) in values.iter().enumerate() {
            let problems = format::label_value(value);
            if !problems.is_empty() {
                let path = format!("values[{i}][{key}]");
                wrong.push(FieldError::invalid(path, value.as_str(), problems.join("; ")));
            }
        }
        match wrong.iter().map(ToString::to_string).collect::<Vec<_>>() {
            list if list.is_empty() => Ok(Self { key, operator, values }),
            list if list.len() == 1 => Err(list.concat()),
            list => Err(format!("[{}]", list.join(", "))),
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        let integers = || Some((value?.parse::<i64>().ok()?, self.values.first()?.parse::<i64>().ok()?));
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => integers().is_some_and(|(a, b)| a > b),
            Operator::LessThan => integers().is_some_and(|(a, b)| a < b),
        }
    }
}

impl fmt::Display for LabelSelector {
    /// The text form as Kubernetes prints it: `a=b,c in (d,e),!f`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let (key, values) = (&r.key, r.values.join(","));
            match r.operator {
                Operator::In => write!(f, "{comma}{key} in ({values})")?,
                Operator::NotIn => write!(f, "{comma}{key} notin ({values})")?,
                Operator::Equals => write!(f, "{comma}{key}={values}")?,
                Operator::DoubleEquals => write!(f, "{comma}{key}=={values}")?,
                Operator::NotEquals => write!(f, "{comma}{key}!={values}")?,
                Operator::Exists => write!(f, "{comma}{key}")?,
                Operator::DoesNotExist => write!(f, "{comma}!{key}")?,
                Operator::GreaterThan => write!(f, "{comma}{key}>{values}")?,
                Operator::LessThan => write!(f, "{comma}{key}<{values}")?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// An identifier; `in` and `notin` are operators only where an operator is expected.
    Word(String),
    /// `=`, `==`, `!=`, `!`, `(`, `)`, `,`, `<`, `>`
    Symbol(&'static str),
    End,
}

impl Token {
    /// The token as error texts quote it.
    fn text(&self) -> String {
        match self {
            Self::Word(word) => word.clone(),
            Self::Symbol(symbol) => (*symbol).to_owned(),
            Self::End => String::new(),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Word(word) => word.len(),
            Self::Symbol(symbol) => symbol.len(),
            Self::End => 0,
        }
    }

    fn starts_requirement(&self) -> bool {
        matches!(self, Self::Word(_) | Self::Symbol("!"))
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", "<", ">"];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let token = match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
            Some(symbol) => Token::Symbol(symbol),
            None => {
                let end = rest.find(|c: char| "=!(),<>".contains(c) || c.is_ascii_whitespace()).unwrap_or(rest.len());
                Token::Word(rest[..end].to_owned())
            }
        };
        rest = rest[token.length()..].trim_start();
        tokens.push(token);
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut list = Vec::new();
        loop {
            match self.peek() {
                Token::End => return Ok(list),
                token if token.starts_requirement() => {
                    list.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                }
                other => {
                    return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
                }
            }
            match self.next() {
                Token::End => return Ok(list),
                Token::Symbol(",") if self.peek().starts_requirement() => {}
                Token::Symbol(",") => {
                    return Err(format!("found '{}', expected: identifier after ','", self.peek().text()));
                }
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut first = self.next();
        let negated = first == Token::Symbol("!");
        if negated {
            first = self.next();
        }
        let Token::Word(key) = first else { return Err(format!("found '{}', expected: identifier", first.text())) };
        let wrong = format::qualified_name(&key);
        if !wrong.is_empty() {
            return Err(FieldError::invalid("<nil>", key, wrong.join("; ")).to_string());
        }
        let ends = matches!(self.peek(), Token::End | Token::Symbol(","));
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if ends {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        Ok(match self.next() {
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            Token::Word(word) if word == "in" => Operator::In,
            Token::Word(word) if word == "notin" => Operator::NotIn,
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        })
    }

    /// `(a, b)`; empty elements are the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let first = self.peek();
        if !matches!(first, Token::Word(_) | Token::Symbol("," | ")")) {
            return Err(format!("found '{}', expected: ',', ')' or identifier", first.text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.next() {
                        Token::Symbol(",") => {
                            if self.peek() == Token::Symbol(")") {
                                values.push(String::new());
                                self.next();
                                return Ok(values);
                            }
                        }
                        Token::Symbol(")") => return Ok(values),
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
                    }
                }
                Token::Symbol(",") => values.push(String::new()),
                Token::Symbol(")") => {
                    values.push(String::new());
                    return Ok(values);
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(word) => Ok(word),
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn labels(value: Value) -> Object {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn text_selectors_match() {
        let web = labels(json!({"app": "web", "tier": "front", "level": "7", "empty": "", "in": "notin"}));
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app = web , tier = front", true),
            ("app!=web", false),
            ("none!=x", true),
            ("tier in (front, back)", true),
            ("tier notin (front)", false),
            ("none notin (a)", true),
            ("none in (a)", false),
            ("app", true),
            ("!app", false),
            ("!none,app", true),
            ("level>6,level<8", true),
            ("app>1", false),
            ("empty=", true),
            ("empty in ()", true),
            ("empty in (a,)", true),
            ("app in (,web)", true),
            ("in in (notin)", true),
            ("in=notin", true),
            ("environment in (production,qa),tier in (front)", false),
        ];
        for (text, expected) in cases {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.matches_labels(Some(&web)), expected, "{text}");
            assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector, "{text}");
        }
    }

    #[test]
    fn bad_selectors_are_refused_in_the_words_of_kubernetes() {
        let cases = [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a,", "found '', expected: identifier after ','"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a==b==c", "found '==', expected: ',' or 'end of string'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
            ("!", "unable to parse requirement: found '', expected: identifier"),
        ];
        for (text, expected) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        let error = LabelSelector::parse("-a=b").unwrap_err().to_string();
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must"),
            "{error}"
        );
        let error = LabelSelector::parse("a=-b").unwrap_err().to_string();
        assert!(error.contains("values[0][a]: Invalid value: \"-b\": a valid label must be"), "{error}");
    }

    #[test]
    fn object_selectors_match() {
        let selector = LabelSelector::from_object(&labels(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["front", "back"]},
                {"key": "legacy", "operator": "DoesNotExist"},
            ],
        })));
        assert_eq!(selector.to_string(), "app=web,!legacy,tier in (back,front)");
        assert!(selector.matches_labels(Some(&labels(json!({"app": "web", "tier": "back"})))));
        assert!(!selector.matches_labels(Some(&labels(json!({"app": "web", "tier": "back", "legacy": ""})))));
        assert!(!selector.matches_labels(None));
        assert!(LabelSelector::from_object(&Object::new()).matches_labels(None));
        let unknown = labels(json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}));
        assert!(!LabelSelector::from_object(&unknown).matches_labels(None));
    }
}
