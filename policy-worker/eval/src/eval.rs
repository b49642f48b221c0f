//! Evaluates an expression over a document.
//!
//! The CEL crate parses; this evaluates, for three reasons. Evaluation is **bounded** by steps, which are counted here
//! and so the same everywhere, where a time limit would not be. It is **deterministic**: maps are walked in the order of
//! their keys and an error has one wording. And it is **three-valued from the inside**: a list whose class of facts is
//! open may have further elements, a count may be larger, so `all` over it can be false but not true, `exists` can be
//! true but not false, and `size(x) > 3` can be true but `size(x) == 3` cannot. What depends on facts that may be missing
//! is `Unknown` with the classes it depends on, and travels through the operators by Kleene's rules, as CEL's errors do
//! (`false && error` is false).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use serde_json::Value as Json;

use crate::evidence::Evidence;
use crate::expression::{Arithmetic, Comparison, Constant, Fold, Node};
use crate::functions::{self, Function};

/// A value of an expression.
#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Str(Cow<'a, str>),
    /// A list or an object of the document, and the open classes that it is evidence of.
    Json(&'a Json, Evidence),
    /// A list that the expression made, likewise.
    List(Rc<Vec<Value<'a>>>, Evidence),
    /// A count that missing facts can only make larger.
    AtLeast(i64, Evidence),
    /// Missing facts of these classes decide it.
    Unknown(Evidence),
}

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An operation has no result: a missing field, a wrong type, an overflow.
    Error(String),
    /// The steps are spent.
    TooCostly,
}

type Outcome<'a> = Result<Value<'a>, Fault>;

fn error<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Error(message.into()))
}

/// What is left of the steps that an evaluation may take.
pub(crate) struct Steps(pub(crate) u64);

impl Steps {
    fn take(&mut self, steps: usize) -> Result<(), Fault> {
        match self.0.checked_sub(steps as u64) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => {
                self.0 = 0;
                Err(Fault::TooCostly)
            }
        }
    }
}

/// Evaluates `node` over `document`, whose classes `open` may be missing facts.
pub(crate) fn evaluate<'a>(
    node: &'a Node,
    document: &'a Json,
    open: Evidence,
    steps: &mut Steps,
) -> Outcome<'a> {
    Evaluation { document, open, steps, locals: Vec::new() }.value(node)
}

struct Evaluation<'a, 's> {
    document: &'a Json,
    open: Evidence,
    steps: &'s mut Steps,
    locals: Vec<Value<'a>>,
}

impl<'a> Evaluation<'a, '_> {
    fn value(&mut self, node: &'a Node) -> Outcome<'a> {
        self.steps.take(1)?;
        Ok(match node {
            Node::Const(constant) => match constant {
                Constant::Null => Value::Null,
                Constant::Bool(value) => Value::Bool(*value),
                Constant::Int(value) => Value::Int(*value),
                Constant::Double(value) => Value::Double(*value),
                Constant::Str(value) => Value::Str(Cow::Borrowed(value)),
            },
            Node::Root => Value::Json(self.document, self.open),
            Node::Local(slot) => match self.locals.get(*slot) {
                Some(value) => value.clone(),
                None => return error("a variable is out of its scope"),
            },
            Node::Select { of, field, default, evidence } => {
                let of = self.value(of)?;
                return self.select(of, field, default.as_ref(), *evidence);
            }
            Node::Has { of, field, evidence } => match self.value(of)? {
                Value::Json(Json::Object(object), open) => {
                    let open = evidence.map_or(open, |evidence| evidence.and(self.open));
                    match object.get(field) {
                        Some(value) if !value.is_null() => Value::Bool(true),
                        _ if open.is_none() => Value::Bool(false),
                        _ => Value::Unknown(open),
                    }
                }
                Value::Unknown(classes) => Value::Unknown(classes),
                other => return error(format!("{} has no fields", kind(&other))),
            },
            Node::Index(of, index) => {
                let of = self.value(of)?;
                let index = self.value(index)?;
                return Self::index(of, &index);
            }
            Node::Not(operand) => match self.value(operand)? {
                Value::Bool(value) => Value::Bool(!value),
                Value::Unknown(classes) => Value::Unknown(classes),
                other => return error(format!("`!` needs a bool, found {}", kind(&other))),
            },
            Node::Negate(operand) => match self.value(operand)? {
                Value::Int(value) => match value.checked_neg() {
                    Some(value) => Value::Int(value),
                    None => return error("a number is too large"),
                },
                Value::Double(value) => Value::Double(-value),
                Value::AtLeast(_, classes) | Value::Unknown(classes) => Value::Unknown(classes),
                other => return error(format!("`-` needs a number, found {}", kind(&other))),
            },
            Node::And(left, right) => return self.logical(left, right, false),
            Node::Or(left, right) => return self.logical(left, right, true),
            Node::If(parts) => {
                let [condition, then, otherwise] = parts.as_ref();
                match self.value(condition)? {
                    Value::Bool(true) => return self.value(then),
                    Value::Bool(false) => return self.value(otherwise),
                    // Whichever it is: if both come to the same, that is it.
                    Value::Unknown(classes) => match (self.value(then)?, self.value(otherwise)?) {
                        (Value::Bool(left), Value::Bool(right)) if left == right => Value::Bool(left),
                        (left, right) => Value::Unknown(classes.with(open_of(&left)).with(open_of(&right))),
                    },
                    other => return error(format!("`?` needs a bool, found {}", kind(&other))),
                }
            }
            Node::Compare(comparison, left, right) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                return self.compare(*comparison, &left, &right);
            }
            Node::Arithmetic(operation, left, right) => {
                let (left, right) = (self.value(left)?, self.value(right)?);
                return self.arithmetic(*operation, left, right);
            }
            Node::In(item, range) => {
                let (item, range) = (self.value(item)?, self.value(range)?);
                return self.contains(&item, &range);
            }
            Node::List(items) => {
                self.steps.take(16 * items.len())?;
                let items = items.iter().map(|item| self.value(item)).collect::<Result<Vec<_>, _>>()?;
                Value::List(Rc::new(items), Evidence::NONE)
            }
            Node::Call(function, args) => {
                let args = args.iter().map(|arg| self.value(arg)).collect::<Result<Vec<_>, _>>()?;
                return self.call(function, &args);
            }
            Node::Fold { kind, range, test, value } => {
                let range = self.value(range)?;
                let scope = self.locals.len();
                let outcome = self.fold(*kind, range, test.as_deref(), value.as_deref());
                self.locals.truncate(scope);
                return outcome;
            }
        })
    }

    fn select(
        &mut self,
        of: Value<'a>,
        field: &str,
        default: Option<&'a Json>,
        evidence: Option<Evidence>,
    ) -> Outcome<'a> {
        match of {
            Value::Json(Json::Object(object), open) => {
                // A field of the document itself says which class it is evidence of; what is below inherits.
                let open = evidence.map_or(open, |evidence| evidence.and(self.open));
                match object.get(field).or(default) {
                    Some(value) => Ok(of_json(value, open, true)),
                    None if open.is_none() => error(format!("there is no `{field}`")),
                    None => Ok(Value::Unknown(open)),
                }
            }
            Value::Unknown(classes) => Ok(Value::Unknown(classes)),
            other => error(format!("{} has no field `{field}`", kind(&other))),
        }
    }

    fn index(of: Value<'a>, index: &Value<'a>) -> Outcome<'a> {
        match (of, index) {
            (Value::Unknown(classes), _) => Ok(Value::Unknown(classes)),
            (_, Value::Unknown(classes) | Value::AtLeast(_, classes)) => Ok(Value::Unknown(*classes)),
            (Value::Json(Json::Object(object), open), Value::Str(key)) => match object.get(key.as_ref()) {
                Some(value) => Ok(of_json(value, open, true)),
                None if open.is_none() => error(format!("there is no `{}`", clip(key))),
                None => Ok(Value::Unknown(open)),
            },
            (Value::Json(Json::Array(_), open) | Value::List(_, open), _) if !open.is_none() => {
                // A fact that is missing would move those after it.
                Ok(Value::Unknown(open))
            }
            (Value::Json(Json::Array(items), open), Value::Int(index)) => {
                match usize::try_from(*index).ok().and_then(|index| items.get(index)) {
                    Some(value) => Ok(of_json(value, open, false)),
                    None => error(format!("there is no element {index}")),
                }
            }
            (Value::List(items, _), Value::Int(index)) => {
                match usize::try_from(*index).ok().and_then(|index| items.get(index)) {
                    Some(value) => Ok(value.clone()),
                    None => error(format!("there is no element {index}")),
                }
            }
            (of, index) => error(format!("{} cannot be indexed by {}", kind(&of), kind(index))),
        }
    }

    /// `&&` for a decisive `false`, `||` for a decisive `true`. The decisive value wins over an error or an unknown on
    /// either side.
    fn logical(&mut self, left: &'a Node, right: &'a Node, decisive: bool) -> Outcome<'a> {
        let left = self.bool(left);
        match left {
            Ok(Ternary::Known(value)) if value == decisive => return Ok(Value::Bool(decisive)),
            Err(Fault::TooCostly) => return Err(Fault::TooCostly),
            _ => {}
        }
        match (left, self.bool(right)) {
            (_, Ok(Ternary::Known(value))) if value == decisive => Ok(Value::Bool(decisive)),
            (_, Err(Fault::TooCostly)) => Err(Fault::TooCostly),
            (Err(fault), _) | (_, Err(fault)) => Err(fault),
            (Ok(Ternary::Unknown(left)), Ok(Ternary::Unknown(right))) => Ok(Value::Unknown(left.with(right))),
            (Ok(Ternary::Unknown(classes)), _) | (_, Ok(Ternary::Unknown(classes))) => {
                Ok(Value::Unknown(classes))
            }
            (Ok(Ternary::Known(_)), Ok(Ternary::Known(value))) => Ok(Value::Bool(value)),
        }
    }

    fn bool(&mut self, node: &'a Node) -> Result<Ternary, Fault> {
        match self.value(node)? {
            Value::Bool(value) => Ok(Ternary::Known(value)),
            Value::Unknown(classes) => Ok(Ternary::Unknown(classes)),
            other => error(format!("expected a bool, found {}", kind(&other))),
        }
    }

    fn compare(&mut self, comparison: Comparison, left: &Value<'a>, right: &Value<'a>) -> Outcome<'a> {
        use Comparison::{Equal, Greater, GreaterEqual, Less, LessEqual, NotEqual};
        if let (Value::Unknown(one), other) | (other, Value::Unknown(one)) = (left, right) {
            return Ok(Value::Unknown(one.with(open_of(other))));
        }
        // A lower bound decides a comparison in one direction.
        let bound = match (left, right) {
            (Value::AtLeast(least, classes), Value::Int(limit)) => {
                Some((*least, *limit, *classes, comparison))
            }
            (Value::Int(limit), Value::AtLeast(least, classes)) => {
                let turned = match comparison {
                    Less => Greater,
                    LessEqual => GreaterEqual,
                    Greater => Less,
                    GreaterEqual => LessEqual,
                    same => same,
                };
                Some((*least, *limit, *classes, turned))
            }
            _ => None,
        };
        if let Some((least, limit, classes, comparison)) = bound {
            let decided = match comparison {
                Greater if least > limit => Some(true),
                GreaterEqual if least >= limit => Some(true),
                Less if least >= limit => Some(false),
                LessEqual | Equal if least > limit => Some(false),
                NotEqual if least > limit => Some(true),
                _ => None,
            };
            return Ok(decided.map_or(Value::Unknown(classes), Value::Bool));
        }
        if let (Value::AtLeast(_, one), other) | (other, Value::AtLeast(_, one)) = (left, right)
            && matches!(other, Value::AtLeast(..) | Value::Double(_))
        {
            return Ok(Value::Unknown(one.with(open_of(other))));
        }
        if matches!(comparison, Equal | NotEqual) {
            return Ok(match self.equal(left, right, 0)? {
                Ternary::Known(equal) => Value::Bool(equal == (comparison == Equal)),
                Ternary::Unknown(classes) => Value::Unknown(classes),
            });
        }
        let ordering = match (left, right) {
            (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
            (Value::Str(left), Value::Str(right)) => {
                self.steps.take(left.len().min(right.len()) / 16)?;
                Some(left.cmp(right))
            }
            (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
            _ => match (as_double(left), as_double(right)) {
                (Some(left), Some(right)) => left.partial_cmp(&right),
                _ => return error(format!("{} and {} have no order", kind(left), kind(right))),
            },
        };
        Ok(Value::Bool(match (comparison, ordering) {
            (_, None) => false,
            (Less, Some(ordering)) => ordering == Ordering::Less,
            (LessEqual, Some(ordering)) => ordering != Ordering::Greater,
            (Greater, Some(ordering)) => ordering == Ordering::Greater,
            (_, Some(ordering)) => ordering != Ordering::Less,
        }))
    }

    fn equal(&mut self, left: &Value<'a>, right: &Value<'a>, depth: usize) -> Result<Ternary, Fault> {
        self.steps.take(1)?;
        if depth > 32 {
            return error("values are nested too deeply to compare");
        }
        let open = open_of(left).with(open_of(right));
        let lists = matches!(left, Value::Json(..) | Value::List(..))
            && matches!(right, Value::Json(..) | Value::List(..));
        if !open.is_none()
            && (lists || matches!(left, Value::Unknown(_)) || matches!(right, Value::Unknown(_)))
        {
            return Ok(Ternary::Unknown(open));
        }
        Ok(Ternary::Known(match (left, right) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(left), Value::Bool(right)) => left == right,
            (Value::Int(left), Value::Int(right)) => left == right,
            (Value::Str(left), Value::Str(right)) => {
                self.steps.take(left.len().min(right.len()) / 16)?;
                left == right
            }
            (Value::AtLeast(least, classes), Value::Int(limit))
            | (Value::Int(limit), Value::AtLeast(least, classes)) => {
                return Ok(if least > limit { Ternary::Known(false) } else { Ternary::Unknown(*classes) });
            }
            (Value::AtLeast(_, classes), Value::AtLeast(..) | Value::Double(_))
            | (Value::Double(_), Value::AtLeast(_, classes)) => return Ok(Ternary::Unknown(*classes)),
            (Value::Json(Json::Object(left), _), Value::Json(Json::Object(right), _)) => {
                self.steps.take(left.len())?;
                if left.len() != right.len() {
                    return Ok(Ternary::Known(false));
                }
                for (key, value) in left {
                    let Some(other) = right.get(key) else { return Ok(Ternary::Known(false)) };
                    let (value, other) =
                        (of_json(value, Evidence::NONE, false), of_json(other, Evidence::NONE, false));
                    if self.equal(&value, &other, depth + 1)? != Ternary::Known(true) {
                        return Ok(Ternary::Known(false));
                    }
                }
                true
            }
            _ if lists => match (length(left), length(right)) {
                (Some(one), Some(other)) if one == other => {
                    for index in 0..one {
                        let index = Value::Int(i64::try_from(index).unwrap_or(i64::MAX));
                        let (one, other) =
                            (Self::index(left.clone(), &index)?, Self::index(right.clone(), &index)?);
                        match self.equal(&one, &other, depth + 1)? {
                            Ternary::Known(true) => {}
                            decided => return Ok(decided),
                        }
                    }
                    true
                }
                _ => false,
            },
            _ => match (as_double(left), as_double(right)) {
                (Some(left), Some(right)) => left == right,
                _ => false,
            },
        }))
    }

    fn arithmetic(&mut self, operation: Arithmetic, left: Value<'a>, right: Value<'a>) -> Outcome<'a> {
        use Arithmetic::{Add, Divide, Modulo, Multiply, Subtract};
        match (left, right) {
            (Value::Unknown(one), other) | (other, Value::Unknown(one)) => {
                Ok(Value::Unknown(one.with(open_of(&other))))
            }
            (Value::Int(left), Value::Int(right)) => {
                let result = match operation {
                    Add => left.checked_add(right),
                    Subtract => left.checked_sub(right),
                    Multiply => left.checked_mul(right),
                    Divide => left.checked_div(right),
                    Modulo => left.checked_rem(right),
                };
                match result {
                    Some(result) => Ok(Value::Int(result)),
                    None if right == 0 => error("division by zero"),
                    None => error("a number is too large"),
                }
            }
            (Value::AtLeast(least, classes), Value::Int(other))
            | (Value::Int(other), Value::AtLeast(least, classes))
                if operation == Add =>
            {
                Ok(Value::AtLeast(least.saturating_add(other), classes))
            }
            (Value::AtLeast(left, one), Value::AtLeast(right, other)) if operation == Add => {
                Ok(Value::AtLeast(left.saturating_add(right), one.with(other)))
            }
            (Value::Str(left), Value::Str(right)) if operation == Add => {
                self.steps.take((left.len() + right.len()) / 8)?;
                Ok(Value::Str(Cow::Owned(left.into_owned() + &right)))
            }
            (
                left @ (Value::Json(Json::Array(_), _) | Value::List(..)),
                right @ (Value::Json(Json::Array(_), _) | Value::List(..)),
            ) if operation == Add => {
                let open = open_of(&left).with(open_of(&right));
                let mut items = self.elements(left)?;
                items.extend(self.elements(right)?);
                Ok(Value::List(Rc::new(items), open))
            }
            // Other calculations with a lower bound have no bound of a direction.
            (Value::AtLeast(_, one), other @ (Value::Int(_) | Value::AtLeast(..)))
            | (other @ Value::Int(_), Value::AtLeast(_, one)) => {
                Ok(Value::Unknown(one.with(open_of(&other))))
            }
            (Value::Double(left), Value::Double(right)) => Ok(Value::Double(match operation {
                Add => left + right,
                Subtract => left - right,
                Multiply => left * right,
                Divide => left / right,
                Modulo => return error("`%` needs whole numbers"),
            })),
            // As CEL has it, a whole number and a double do not mix.
            (left, right) => error(format!("{} and {} cannot be calculated with", kind(&left), kind(&right))),
        }
    }

    fn contains(&mut self, item: &Value<'a>, range: &Value<'a>) -> Outcome<'a> {
        if let (Value::Unknown(one), other) | (other, Value::Unknown(one)) = (item, range) {
            return Ok(Value::Unknown(one.with(open_of(other))));
        }
        let mut open = open_of(range);
        let found = match (range, item) {
            (Value::Json(Json::Object(object), _), Value::Str(key)) => object.contains_key(key.as_ref()),
            (Value::Json(Json::Array(items), _), Value::Str(wanted)) => {
                self.steps.take(items.len())?;
                items.iter().any(|item| item.as_str() == Some(wanted))
            }
            (Value::Json(Json::Array(_), _) | Value::List(..), _) => {
                let mut found = false;
                for element in self.elements(range.clone())? {
                    match self.equal(&element, item, 0)? {
                        Ternary::Known(equal) => found |= equal,
                        Ternary::Unknown(classes) => open = open.with(classes),
                    }
                }
                found
            }
            (range, item) => return error(format!("{} cannot be in {}", kind(item), kind(range))),
        };
        Ok(match found {
            true => Value::Bool(true),
            false if open.is_none() => Value::Bool(false),
            false => Value::Unknown(open),
        })
    }

    /// The elements of a list, or the keys of a map in their order.
    fn elements(&mut self, range: Value<'a>) -> Result<Vec<Value<'a>>, Fault> {
        match range {
            Value::Json(Json::Array(items), open) => {
                self.steps.take(items.len())?;
                Ok(items.iter().map(|item| of_json(item, open, false)).collect())
            }
            Value::Json(Json::Object(object), _) => {
                self.steps.take(object.len())?;
                let mut keys: Vec<&str> = object.keys().map(String::as_str).collect();
                keys.sort_unstable();
                Ok(keys.into_iter().map(|key| Value::Str(Cow::Borrowed(key))).collect())
            }
            Value::List(items, _) => {
                self.steps.take(items.len())?;
                Ok(Rc::unwrap_or_clone(items))
            }
            other => error(format!("{} has no elements", kind(&other))),
        }
    }

    fn fold(
        &mut self,
        fold: Fold,
        range: Value<'a>,
        test: Option<&'a Node>,
        value: Option<&'a Node>,
    ) -> Outcome<'a> {
        if let Value::Unknown(classes) = range {
            return Ok(Value::Unknown(classes));
        }
        let mut open = open_of(&range);
        let mut failed = None;
        let mut found = 0;
        let mut kept = Vec::new();
        for element in self.elements(range)? {
            self.locals.push(element);
            let tested = test.map_or(Ok(Ternary::Known(true)), |test| self.bool(test));
            let holds = match tested {
                Ok(Ternary::Known(holds)) => holds,
                Err(Fault::TooCostly) => return Err(Fault::TooCostly),
                Err(fault) if matches!(fold, Fold::All | Fold::Exists) => {
                    // A later element may still decide it.
                    failed.get_or_insert(fault);
                    fold == Fold::All
                }
                Err(fault) => return Err(fault),
                Ok(Ternary::Unknown(classes)) => {
                    open = open.with(classes);
                    fold == Fold::All
                }
            };
            match fold {
                Fold::All if !holds => return Ok(Value::Bool(false)),
                Fold::Exists if holds => return Ok(Value::Bool(true)),
                Fold::ExistsOne if holds => found += 1,
                Fold::Filter | Fold::Map if holds => {
                    self.steps.take(16)?;
                    let made = match value {
                        Some(value) => Some(self.value(value)?),
                        None => self.locals.last().cloned(),
                    };
                    kept.extend(made);
                }
                _ => {}
            }
            self.locals.pop();
        }
        if let Some(fault) = failed {
            return Err(fault);
        }
        Ok(match fold {
            Fold::Filter | Fold::Map => Value::List(Rc::new(kept), open),
            Fold::ExistsOne if found > 1 => Value::Bool(false),
            _ if !open.is_none() => Value::Unknown(open),
            Fold::All => Value::Bool(true),
            Fold::Exists => Value::Bool(false),
            Fold::ExistsOne => Value::Bool(found == 1),
        })
    }

    fn call(&mut self, function: &Function, args: &[Value<'a>]) -> Outcome<'a> {
        for arg in args {
            if let Value::Unknown(classes) = arg {
                return Ok(Value::Unknown(*classes));
            }
        }
        let text = |index: usize| match args.get(index) {
            Some(Value::Str(text)) => Ok(text.as_ref()),
            Some(other) => error(format!("expected a string, found {}", kind(other))),
            None => error("an argument is missing"),
        };
        if let Some(Value::Str(text)) = args.first() {
            self.steps.take(1 + text.len() / 8)?;
        }
        Ok(match function {
            Function::Size => match args.first() {
                Some(Value::Str(text)) => Value::Int(as_int(text.chars().count())),
                Some(other) => match (length(other), open_of(other)) {
                    (Some(length), Evidence::NONE) => Value::Int(as_int(length)),
                    (Some(length), open) => Value::AtLeast(as_int(length), open),
                    (None, _) => return error(format!("{} has no size", kind(other))),
                },
                None => return error("an argument is missing"),
            },
            Function::Contains => {
                self.steps.take(text(1)?.len() / 8)?;
                Value::Bool(text(0)?.contains(text(1)?))
            }
            Function::StartsWith => Value::Bool(text(0)?.starts_with(text(1)?)),
            Function::EndsWith => Value::Bool(text(0)?.ends_with(text(1)?)),
            Function::LowerAscii => Value::Str(Cow::Owned(text(0)?.to_ascii_lowercase())),
            Function::Under => Value::Bool(functions::under(text(0)?, text(1)?)),
            Function::Matches(regex) => {
                // Linear in the text, with a factor for the pattern's size.
                self.steps.take(text(0)?.len())?;
                Value::Bool(regex.is_match(text(0)?))
            }
            Function::CidrContains(cidr) => Value::Bool(cidr.contains(text(0)?)),
            Function::Port => match functions::port(text(0)?) {
                Some(port) => Value::Int(i64::from(port)),
                None => return error(format!("`{}` has no port", clip(text(0)?))),
            },
            Function::Int => match args.first() {
                Some(Value::Str(text)) => match text.parse() {
                    Ok(value) => Value::Int(value),
                    Err(_) => return error(format!("`{}` is not a whole number", clip(text))),
                },
                Some(Value::Double(value)) if value.abs() < 9e15 => Value::Int(*value as i64),
                Some(value @ (Value::Int(_) | Value::AtLeast(..))) => value.clone(),
                Some(other) => return error(format!("int() cannot convert {}", kind(other))),
                None => return error("an argument is missing"),
            },
            Function::Str => match args.first() {
                Some(text @ Value::Str(_)) => text.clone(),
                Some(Value::Int(value)) => Value::Str(Cow::Owned(value.to_string())),
                Some(Value::Bool(value)) => Value::Str(Cow::Owned(value.to_string())),
                Some(Value::Double(value)) => Value::Str(Cow::Owned(value.to_string())),
                Some(Value::AtLeast(_, classes)) => Value::Unknown(*classes),
                Some(other) => return error(format!("string() cannot convert {}", kind(other))),
                None => return error("an argument is missing"),
            },
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ternary {
    Known(bool),
    Unknown(Evidence),
}

/// A value of the document. `counts`: a number here may be a count of facts (a field, not an element of a list).
fn of_json(json: &Json, open: Evidence, counts: bool) -> Value<'_> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::String(text) => Value::Str(Cow::Borrowed(text)),
        Json::Array(_) | Json::Object(_) => Value::Json(json, open),
        Json::Number(number) => match number.as_i64() {
            Some(value) if counts && open.counts() => Value::AtLeast(value, open),
            Some(value) => Value::Int(value),
            None => Value::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

fn open_of(value: &Value<'_>) -> Evidence {
    match value {
        Value::Json(_, open) | Value::List(_, open) | Value::AtLeast(_, open) | Value::Unknown(open) => *open,
        _ => Evidence::NONE,
    }
}

fn length(value: &Value<'_>) -> Option<usize> {
    match value {
        Value::Json(Json::Array(items), _) => Some(items.len()),
        Value::Json(Json::Object(object), _) => Some(object.len()),
        Value::List(items, _) => Some(items.len()),
        _ => None,
    }
}

fn as_double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(value) | Value::AtLeast(value, _) => Some(*value as f64),
        Value::Double(value) => Some(*value),
        _ => None,
    }
}

fn as_int(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// What a value is, for a message.
pub(crate) fn kind(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a bool",
        Value::Int(_) | Value::AtLeast(..) => "a number",
        Value::Double(_) => "a double",
        Value::Str(_) => "a string",
        Value::Json(Json::Object(_), _) => "an object",
        Value::Json(..) | Value::List(..) => "a list",
        Value::Unknown(_) => "an unknown",
    }
}

/// Text of the document, short enough for a message.
fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}
