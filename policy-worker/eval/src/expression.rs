//! CEL text to an expression that can be evaluated: parsed with bounds, every name, function and field checked, every
//! pattern compiled.

use std::sync::Arc;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators};
use glasshouse_schema::verdict::RulePhase;
use serde_json::Value as Json;

use crate::diagnostic::nearest;
use crate::evidence::Evidence;
use crate::functions::{Function, Pattern};
use crate::shape::Shape;

/// Longest expression, in bytes.
pub(crate) const MAX_BYTES: usize = 16 * 1024;
/// Deepest nesting of brackets. The CEL grammar spends some 300 KiB of stack on each in a debug build.
const MAX_BRACKETS: usize = 24;
/// Longest chain of operators, selections and calls within one operand of `&&`, `||` or `,`.
const MAX_CHAIN: usize = 100;
/// Most nodes of one expression.
const MAX_NODES: usize = 4096;
/// How many comprehensions (`all`, `exists`, …) may stand inside each other.
const MAX_COMPREHENSIONS: usize = 2;

/// An expression that can be evaluated.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Const(Constant),
    /// The whole document.
    Root,
    /// A variable of a comprehension, counted from the outermost.
    Local(usize),
    Select {
        of: Box<Node>,
        field: String,
        /// What stands for the field when the document leaves it out.
        default: Option<Json>,
        /// What the field is evidence of, where it is one of the document's own.
        evidence: Option<Evidence>,
    },
    Has {
        of: Box<Node>,
        field: String,
        evidence: Option<Evidence>,
    },
    Index(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If(Box<[Node; 3]>),
    Compare(Comparison, Box<Node>, Box<Node>),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    In(Box<Node>, Box<Node>),
    List(Vec<Node>),
    Call(Function, Vec<Node>),
    Fold {
        kind: Fold,
        range: Box<Node>,
        /// The condition of a `filter`, of a three-argument `map`, or of `all`, `exists` and `exists_one`.
        test: Option<Box<Node>>,
        /// What `map` makes of an element.
        value: Option<Box<Node>>,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum Constant {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Str(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fold {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

/// A problem at a byte offset of the expression.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) offset: usize,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// Compiles one expression. Wants [`STACK_BYTES`] of stack.
pub(crate) fn compile(source: &str, phase: RulePhase) -> Result<Node, Vec<Problem>> {
    check_bounds(source).map_err(|problem| vec![problem])?;
    let env = cel::Env::default().with_optional_support(false);
    let (expression, info) = env.parser().parse_with_source_info(source).map_err(|errors| {
        // One slip makes the grammar complain in many places: the first is the one to look at.
        errors.errors.iter().take(1).map(|error| syntax_problem(source, error)).collect::<Vec<_>>()
    })?;
    let mut lowering = Lowering {
        source,
        info,
        roots: roots(phase),
        phase,
        locals: Vec::new(),
        comprehensions: 0,
        nodes: 0,
        problems: Vec::new(),
    };
    let (node, shape) = lowering.lower(&expression);
    if !matches!(shape, Shape::Bool | Shape::Any) {
        lowering.problem(
            expression.id,
            format!("a rule's expression must be a bool, this is {}", shape.name()),
            Some("write what must be true when all is well".into()),
        );
    }
    match lowering.problems.is_empty() {
        true => Ok(node),
        false => Err(lowering.problems),
    }
}

/// What parsing may need: 24 brackets fit into 8 MiB in a debug build.
pub(crate) const STACK_BYTES: usize = 32 * 1024 * 1024;

/// The variables that a phase's rules see.
fn roots(phase: RulePhase) -> Vec<(&'static str, Shape)> {
    match phase {
        RulePhase::Pre => vec![("request", Shape::request())],
        // One event and its execution's context; nothing evaluates these yet, so their fields are not checked.
        RulePhase::Runtime => vec![("event", Shape::Any), ("execution", Shape::Any)],
        RulePhase::Post => vec![("receipt", Shape::receipt())],
    }
}

fn syntax_problem(source: &str, error: &cel::ParseError) -> Problem {
    let (line, column) = (error.pos.0.max(1) as usize, error.pos.1.max(1) as usize);
    let line_start: usize = source.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let within: usize = source[line_start..].chars().take(column - 1).map(char::len_utf8).sum();
    let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    // The grammar lists every token that could follow; nobody reads that.
    let message = message.split(" expecting {").next().unwrap_or(message);
    let message = message.replace("'<EOF>'", "end of the expression");
    Problem { offset: line_start + within, message: format!("this is not CEL: {message}"), help: None }
}

/// Walks the text once, without recursion, before the recursive grammar sees it.
fn check_bounds(source: &str) -> Result<(), Problem> {
    let problem = |offset, message: String| Err(Problem { offset, message, help: None });
    if source.trim().is_empty() {
        return problem(0, "the expression is empty".into());
    }
    if source.len() > MAX_BYTES {
        return problem(0, format!("the expression has {} bytes, more than {MAX_BYTES}", source.len()));
    }
    // The chain of each open bracket, the outermost first.
    let mut chains = vec![0_usize];
    for token in tokens(source) {
        let Token { offset, text, kind } = token;
        if kind != TokenKind::Symbol {
            continue;
        }
        let depth = chains.len();
        match (text, chains.last_mut()) {
            ("(" | "[" | "{", Some(chain)) => {
                *chain += 1;
                chains.push(0);
            }
            (")" | "]" | "}", _) if depth > 1 => {
                let inner = chains.pop().unwrap_or_default();
                if let Some(chain) = chains.last_mut() {
                    *chain += inner;
                }
            }
            ("," | "&&" | "||", Some(chain)) => *chain = 0,
            (_, Some(chain)) => *chain += 1,
            _ => {}
        }
        if chains.len() > MAX_BRACKETS {
            return problem(offset, format!("more than {MAX_BRACKETS} brackets inside each other"));
        }
        if chains.iter().sum::<usize>() > MAX_CHAIN {
            return problem(offset, format!("more than {MAX_CHAIN} operators in one chain"));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenKind {
    /// A name, a keyword or a number.
    Word,
    /// A string with its quotes and prefix.
    Text,
    Symbol,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    offset: usize,
    text: &'a str,
    kind: TokenKind,
}

/// CEL's tokens, near enough to count them and to leave out space and comments.
fn tokens(source: &str) -> impl Iterator<Item = Token<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = &source[at..];
            let first = rest.chars().next()?;
            if first.is_whitespace() {
                at += first.len_utf8();
                continue;
            }
            if rest.starts_with("//") {
                at += rest.find('\n').unwrap_or(rest.len());
                continue;
            }
            let (length, kind) = if let Some(length) = text_length(rest) {
                (length, TokenKind::Text)
            } else if is_word(first) {
                (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), TokenKind::Word)
            } else {
                let two = rest.get(..2).filter(|two| ["&&", "||", "==", "!=", "<=", ">="].contains(two));
                (two.map_or(first.len_utf8(), str::len), TokenKind::Symbol)
            };
            let token = Token { offset: at, text: &rest[..length], kind };
            at += length;
            return Some(token);
        }
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the string literal that `rest` begins with, prefix and quotes included.
fn text_length(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c: char| !matches!(c, 'r' | 'R' | 'b' | 'B')).filter(|length| *length <= 2)?;
    let raw = rest[..prefix].contains(['r', 'R']);
    let body = &rest[prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| body.starts_with(quote))?;
    let mut escaped = false;
    let inner = &body[quote.len()..];
    for (at, c) in inner.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' && !raw {
            escaped = true;
        } else if inner[at..].starts_with(quote) {
            return Some(prefix + quote.len() + at + quote.len());
        } else if c == '\n' && quote.len() == 1 {
            // Not closed on its line: the grammar will say so.
            return Some(prefix + quote.len() + at);
        }
    }
    Some(rest.len())
}

/// The expression without what does not change its meaning (space, comments, line ends), for its digest.
pub(crate) fn canonical(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    for token in tokens(source) {
        let joined = text.chars().last().is_some_and(is_word) && token.kind != TokenKind::Symbol;
        // Two symbols that stood apart stay apart, lest `< =` become `<=`.
        let apart = text.len() < source.len()
            && token.kind == TokenKind::Symbol
            && text.ends_with(['&', '|', '=', '!', '<', '>', '-'])
            && !source[..token.offset].ends_with(['&', '|', '=', '!', '<', '>', '-']);
        if joined || apart {
            text.push(' ');
        }
        text.push_str(token.text);
    }
    text
}

struct Lowering<'a> {
    source: &'a str,
    info: SourceInfo,
    roots: Vec<(&'static str, Shape)>,
    phase: RulePhase,
    locals: Vec<(String, Shape)>,
    comprehensions: usize,
    nodes: usize,
    problems: Vec<Problem>,
}

impl Lowering<'_> {
    fn problem(&mut self, id: u64, message: impl Into<String>, help: Option<String>) -> (Node, Shape) {
        let offset = self.info.offset_for(id).map_or(0, |(start, _)| start as usize);
        let offset = self.named_at(offset);
        if self.problems.len() < 16 {
            self.problems.push(Problem { offset, message: message.into(), help });
        }
        (Node::Const(Constant::Null), Shape::Any)
    }

    /// The parser places a selection at its dot and a call at its bracket: the name is the better place.
    fn named_at(&self, offset: usize) -> usize {
        let Some((before, rest)) = self.source.split_at_checked(offset) else { return 0 };
        match rest.chars().next() {
            Some('.') => offset + 1 + (rest.len() - 1 - rest[1..].trim_start().len()),
            Some('(') => before.trim_end_matches(is_word).len(),
            _ => offset,
        }
    }

    fn lower(&mut self, expression: &IdedExpr) -> (Node, Shape) {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            if self.nodes == MAX_NODES + 1 {
                self.problem(expression.id, format!("more than {MAX_NODES} nodes in one expression"), None);
            }
            return (Node::Const(Constant::Null), Shape::Any);
        }
        match &expression.expr {
            Expr::Literal(literal) => self.literal(expression.id, literal),
            Expr::Ident(name) => self.ident(expression.id, name),
            Expr::Select(select) => {
                let (of, shape) = self.lower(&select.operand);
                let evidence = Self::evidence_of(&of, &select.field);
                match self.field(expression.id, &shape, &select.field) {
                    Some((shape, default)) => {
                        let of = Box::new(of);
                        (Node::Select { of, field: select.field.clone(), default, evidence }, shape)
                    }
                    None => (Node::Const(Constant::Null), Shape::Any),
                }
            }
            Expr::List(list) => {
                let items: Vec<(Node, Shape)> = list.elements.iter().map(|item| self.lower(item)).collect();
                let shape = items.first().map_or(Shape::Any, |(_, shape)| shape.clone());
                let shape = if items.iter().all(|(_, other)| *other == shape) { shape } else { Shape::Any };
                (Node::List(items.into_iter().map(|(node, _)| node).collect()), Shape::List(Arc::new(shape)))
            }
            Expr::Call(call) => self.call(expression.id, call),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.lower(&entry.key);
                        self.lower(&entry.value);
                    }
                }
                self.problem(expression.id, "map literals are not supported in a policy", None)
            }
            Expr::Struct(_) => self.problem(expression.id, "messages are not supported in a policy", None),
            Expr::Comprehension(_) | Expr::Unspecified => {
                self.problem(expression.id, "this expression is not supported in a policy", None)
            }
        }
    }

    fn literal(&mut self, id: u64, literal: &LiteralValue) -> (Node, Shape) {
        let (constant, shape) = match literal {
            LiteralValue::Boolean(value) => (Constant::Bool(*value.inner()), Shape::Bool),
            LiteralValue::Int(value) => (Constant::Int(*value.inner()), Shape::Number),
            LiteralValue::Double(value) => (Constant::Double(*value.inner()), Shape::Number),
            LiteralValue::Null => (Constant::Null, Shape::Null),
            LiteralValue::String(value) => (Constant::Str(value.inner().to_owned()), Shape::Str),
            LiteralValue::UInt(value) => match i64::try_from(*value.inner()) {
                Ok(value) => (Constant::Int(value), Shape::Number),
                Err(_) => return self.problem(id, "the number is too large", None),
            },
            LiteralValue::Bytes(_) => {
                return self.problem(id, "bytes are not supported in a policy", None);
            }
        };
        (Node::Const(constant), shape)
    }

    fn ident(&mut self, id: u64, name: &str) -> (Node, Shape) {
        if let Some(slot) = self.locals.iter().rposition(|(local, _)| local == name) {
            return (Node::Local(slot), self.locals[slot].1.clone());
        }
        if let Some((_, shape)) = self.roots.iter().find(|(root, _)| *root == name) {
            return (Node::Root, shape.clone());
        }
        let known: Vec<&str> = self.roots.iter().map(|(root, _)| *root).collect();
        let phase = match self.phase {
            RulePhase::Pre => "pre",
            RulePhase::Runtime => "runtime",
            RulePhase::Post => "post",
        };
        let other = ["request", "event", "execution", "receipt"].contains(&name);
        let locals = self.locals.iter().map(|(local, _)| local.as_str());
        let help = match nearest(name, known.iter().copied().chain(locals)) {
            Some(near) if !other => format!("did you mean `{near}`?"),
            _ => format!("a rule of phase `{phase}` sees `{}`", known.join("` and `")),
        };
        self.problem(id, format!("unknown variable `{name}`"), Some(help))
    }

    fn evidence_of(of: &Node, field: &str) -> Option<Evidence> {
        matches!(of, Node::Root).then(|| Evidence::of_field(field))
    }

    fn field(&mut self, id: u64, shape: &Shape, field: &str) -> Option<(Shape, Option<Json>)> {
        match shape {
            Shape::Any => return Some((Shape::Any, None)),
            Shape::Map(values) => return Some((values.as_ref().clone(), None)),
            Shape::Object(fields) => match fields.get(field) {
                Some(field) => return Some((field.shape.clone(), field.default.clone())),
                None => {
                    let near = nearest(field, fields.keys().map(String::as_str));
                    let help = near.map(|near| format!("did you mean `{near}`?")).or_else(|| {
                        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
                        Some(format!("it has {}", names.join(", ")))
                    });
                    self.problem(id, format!("there is no field `{field}` here"), help);
                }
            },
            Shape::List(_) => {
                let help = "look at its elements with .all(x, …) or .exists(x, …)";
                self.problem(id, format!("a list has no field `{field}`"), Some(help.into()));
            }
            other => {
                self.problem(id, format!("{} has no field `{field}`", other.name()), None);
            }
        }
        None
    }

    fn call(&mut self, id: u64, call: &CallExpr) -> (Node, Shape) {
        if let Some(target) = &call.target
            && let Some(kind) = fold_kind(&call.func_name)
        {
            return self.fold(id, kind, target, &call.args);
        }
        if call.func_name == operators::HAS && call.target.is_none() {
            return self.has(id, &call.args);
        }
        if call.target.is_none()
            && let Some(lowered) = self.operator(id, call)
        {
            return lowered;
        }
        self.function(id, call)
    }

    fn has(&mut self, id: u64, args: &[IdedExpr]) -> (Node, Shape) {
        let [IdedExpr { expr: Expr::Select(select), id: select_id }] = args else {
            return self.problem(id, "has() takes one field, such as has(receipt.labels.team)", None);
        };
        let (of, shape) = self.lower(&select.operand);
        let evidence = Self::evidence_of(&of, &select.field);
        if self.field(*select_id, &shape, &select.field).is_none() {
            return (Node::Const(Constant::Null), Shape::Any);
        }
        (Node::Has { of: Box::new(of), field: select.field.clone(), evidence }, Shape::Bool)
    }

    /// Lowers operands that must be bools.
    fn bool_operand(&mut self, operand: &IdedExpr) -> Box<Node> {
        let (node, shape) = self.lower(operand);
        if !matches!(shape, Shape::Bool | Shape::Any) {
            self.problem(operand.id, format!("expected a bool, found {}", shape.name()), None);
        }
        Box::new(node)
    }

    fn operator(&mut self, id: u64, call: &CallExpr) -> Option<(Node, Shape)> {
        use Arithmetic::{Add, Divide, Modulo, Multiply, Subtract};
        use Comparison::{Equal, Greater, GreaterEqual, Less, LessEqual, NotEqual};
        let arithmetic = |kind| Some((Some(kind), None));
        let comparison = |kind| Some((None, Some(kind)));
        let binary = match call.func_name.as_str() {
            operators::ADD => arithmetic(Add),
            operators::SUBSTRACT => arithmetic(Subtract),
            operators::MULTIPLY => arithmetic(Multiply),
            operators::DIVIDE => arithmetic(Divide),
            operators::MODULO => arithmetic(Modulo),
            operators::EQUALS => comparison(Equal),
            operators::NOT_EQUALS => comparison(NotEqual),
            operators::LESS => comparison(Less),
            operators::LESS_EQUALS => comparison(LessEqual),
            operators::GREATER => comparison(Greater),
            operators::GREATER_EQUALS => comparison(GreaterEqual),
            _ => None,
        };
        Some(match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                (Node::And(self.bool_operand(left), self.bool_operand(right)), Shape::Bool)
            }
            (operators::LOGICAL_OR, [left, right]) => {
                (Node::Or(self.bool_operand(left), self.bool_operand(right)), Shape::Bool)
            }
            (operators::LOGICAL_NOT, [operand]) => (Node::Not(self.bool_operand(operand)), Shape::Bool),
            (operators::NEGATE, [operand]) => (Node::Negate(Box::new(self.lower(operand).0)), Shape::Number),
            (operators::CONDITIONAL, [condition, then, otherwise]) => {
                let condition = *self.bool_operand(condition);
                let (then, left) = self.lower(then);
                let (otherwise, right) = self.lower(otherwise);
                let shape = if left == right { left } else { Shape::Any };
                (Node::If(Box::new([condition, then, otherwise])), shape)
            }
            (operators::IN, [item, range]) => {
                let (item_node, item_shape) = self.lower(item);
                let (range_node, range_shape) = self.lower(range);
                match &range_shape {
                    Shape::List(items) if !items.may_equal(&item_shape) => {
                        let message = format!("{} is never in a list of this kind", item_shape.name());
                        return Some(self.problem(id, message, None));
                    }
                    Shape::List(_) | Shape::Map(_) | Shape::Any => {}
                    other => {
                        let message = format!("`in` needs a list or a map, found {}", other.name());
                        return Some(self.problem(range.id, message, None));
                    }
                }
                (Node::In(Box::new(item_node), Box::new(range_node)), Shape::Bool)
            }
            (operators::INDEX, [of, index]) => self.index(of, index),
            (_, [left, right]) => {
                let (arithmetic, comparison) = binary?;
                let (left, left_shape) = self.lower(left);
                let (right, right_shape) = self.lower(right);
                if !left_shape.may_equal(&right_shape) {
                    let message = format!("{} meets {}", left_shape.name(), right_shape.name());
                    let help =
                        matches!((&left_shape, &right_shape), (Shape::Str, _) | (_, Shape::Str)).then(|| {
                            "a number that can pass 2^53 is a string in a receipt: int(…) reads it".into()
                        });
                    return Some(self.problem(id, message, help));
                }
                let (left, right) = (Box::new(left), Box::new(right));
                match (arithmetic, comparison) {
                    (Some(kind), _) => (Node::Arithmetic(kind, left, right), left_shape),
                    (_, Some(kind)) => (Node::Compare(kind, left, right), Shape::Bool),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    fn index(&mut self, of: &IdedExpr, index: &IdedExpr) -> (Node, Shape) {
        let (node, shape) = self.lower(of);
        // `x["field"]` of an object is `x.field`, and checked like it.
        if let (Shape::Object(_), Expr::Literal(LiteralValue::String(field))) = (&shape, &index.expr) {
            let field = field.inner().to_owned();
            let evidence = Self::evidence_of(&node, &field);
            return match self.field(index.id, &shape, &field) {
                Some((shape, default)) => {
                    (Node::Select { of: Box::new(node), field, default, evidence }, shape)
                }
                None => (Node::Const(Constant::Null), Shape::Any),
            };
        }
        let (index_node, index_shape) = self.lower(index);
        let (expected, element) = match &shape {
            Shape::List(items) => (Shape::Number, items.as_ref().clone()),
            Shape::Map(values) => (Shape::Str, values.as_ref().clone()),
            Shape::Any => (Shape::Any, Shape::Any),
            Shape::Object(_) => {
                return self.problem(index.id, "a field's name must be written out", None);
            }
            other => return self.problem(of.id, format!("{} has no elements", other.name()), None),
        };
        if !expected.may_equal(&index_shape) {
            let message = format!("expected {} as index, found {}", expected.name(), index_shape.name());
            return self.problem(index.id, message, None);
        }
        (Node::Index(Box::new(node), Box::new(index_node)), element)
    }

    fn fold(&mut self, id: u64, kind: Fold, target: &IdedExpr, args: &[IdedExpr]) -> (Node, Shape) {
        let (variable, test, value) = match (kind, args) {
            (Fold::Map, [variable, value]) => (variable, None, Some(value)),
            (Fold::Map, [variable, test, value]) => (variable, Some(test), Some(value)),
            (Fold::Map, _) => {
                return self.problem(id, "map() takes a variable and an expression", None);
            }
            (_, [variable, test]) => (variable, Some(test), None),
            _ => return self.problem(id, "it takes a variable and a condition", None),
        };
        let Expr::Ident(name) = &variable.expr else {
            return self.problem(variable.id, "expected the name of a variable", None);
        };
        let (range, range_shape) = self.lower(target);
        let element = match &range_shape {
            Shape::List(items) => items.as_ref().clone(),
            Shape::Map(_) => Shape::Str,
            Shape::Any => Shape::Any,
            Shape::Object(_) => {
                let message = "an object is not a list: its fields are of different kinds";
                return self.problem(target.id, message, None);
            }
            other => {
                let message = format!("expected a list or a map, found {}", other.name());
                return self.problem(target.id, message, None);
            }
        };
        if self.comprehensions == MAX_COMPREHENSIONS {
            let message = format!("more than {MAX_COMPREHENSIONS} comprehensions inside each other");
            return self.problem(id, message, Some("their cost multiplies".into()));
        }
        self.comprehensions += 1;
        self.locals.push((name.clone(), element.clone()));
        let test = test.map(|test| self.bool_operand(test));
        let value = value.map(|value| self.lower(value));
        self.locals.pop();
        self.comprehensions -= 1;
        let shape = match (kind, &value) {
            (Fold::Map, Some((_, shape))) => Shape::List(Arc::new(shape.clone())),
            (Fold::Filter, _) => Shape::List(Arc::new(element)),
            _ => Shape::Bool,
        };
        let value = value.map(|(node, _)| Box::new(node));
        (Node::Fold { kind, range: Box::new(range), test, value }, shape)
    }

    fn function(&mut self, id: u64, call: &CallExpr) -> (Node, Shape) {
        let args: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        let Some(signature) = Function::signature(&call.func_name) else {
            for arg in args {
                self.lower(arg);
            }
            let names = Function::names().chain(["all", "exists", "exists_one", "map", "filter", "has"]);
            let help = match nearest(&call.func_name, names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the functions are {}", Function::names().collect::<Vec<_>>().join(", ")),
            };
            return self.problem(id, format!("unknown function `{}`", call.func_name), Some(help));
        };
        if args.len() != signature.parameters.len() {
            let message = format!(
                "{}() takes {} arguments, found {}: {}",
                call.func_name,
                signature.parameters.len(),
                args.len(),
                signature.usage
            );
            return self.problem(id, message, None);
        }
        let mut nodes = Vec::with_capacity(args.len());
        let mut pattern = None;
        for (arg, parameter) in args.iter().zip(signature.parameters) {
            let (node, shape) = self.lower(arg);
            if !parameter.accepts(&shape) {
                let message = format!(
                    "{}() takes {} here, found {}: {}",
                    call.func_name,
                    parameter.name(),
                    shape.name(),
                    signature.usage
                );
                self.problem(arg.id, message, None);
            } else if let Some(kind) = parameter.pattern() {
                match &node {
                    Node::Const(Constant::Str(text)) => match Pattern::compile(kind, text) {
                        Ok(compiled) => pattern = Some(compiled),
                        Err(message) => drop(self.problem(arg.id, message, None)),
                    },
                    _ => {
                        let help = "it is compiled once, when the policy is loaded".to_owned();
                        let message = "a pattern must be written out as a string";
                        self.problem(arg.id, message, Some(help));
                    }
                }
                continue;
            }
            nodes.push(node);
        }
        match Function::of(signature.kind, pattern) {
            Some(function) => (Node::Call(function, nodes), signature.result.clone()),
            None => (Node::Const(Constant::Null), signature.result.clone()),
        }
    }
}

fn fold_kind(name: &str) -> Option<Fold> {
    Some(match name {
        operators::ALL => Fold::All,
        operators::EXISTS => Fold::Exists,
        operators::EXISTS_ONE | "existsOne" => Fold::ExistsOne,
        operators::FILTER => Fold::Filter,
        operators::MAP => Fold::Map,
        _ => return None,
    })
}

impl Node {
    /// How many compiled patterns the expression holds.
    pub(crate) fn patterns(&self) -> usize {
        match self {
            Self::Const(_) | Self::Root | Self::Local(_) => 0,
            Self::Select { of, .. } | Self::Has { of, .. } | Self::Not(of) | Self::Negate(of) => {
                of.patterns()
            }
            Self::Index(left, right)
            | Self::And(left, right)
            | Self::Or(left, right)
            | Self::In(left, right)
            | Self::Compare(_, left, right)
            | Self::Arithmetic(_, left, right) => left.patterns() + right.patterns(),
            Self::If(parts) => parts.iter().map(Self::patterns).sum(),
            Self::List(items) => items.iter().map(Self::patterns).sum(),
            Self::Call(function, args) => {
                let own = usize::from(matches!(function, Function::Matches(_) | Function::CidrContains(_)));
                own + args.iter().map(Self::patterns).sum::<usize>()
            }
            Self::Fold { range, test, value, .. } => {
                let parts = [Some(range), test.as_ref(), value.as_ref()];
                parts.into_iter().flatten().map(|node| node.patterns()).sum()
            }
        }
    }
}
