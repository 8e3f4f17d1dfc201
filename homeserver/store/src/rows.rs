//! Rows of values as a part of a statement.
//!
//! On PostgreSQL each column is one parameter, an array: the statement's text is the same for any number of rows, so a
//! connection parses it once and soon has a plan that serves all. With a parameter a value, each number of rows would be a
//! statement of its own, which costs more to parse and to plan than to run. SQLite has no arrays, and parses fast.

use sea_orm::{DbBackend, Value, sea_query::ArrayType};

use crate::ReadTx;

/// The most parameters that SQLite takes in one statement, with some room for a statement's own.
const MAX_PARAMETERS: usize = 32_000;

impl ReadTx {
    /// How many rows of so many columns one statement takes.
    pub(crate) fn rows_a_statement(&self, columns: usize) -> usize {
        match self.backend() {
            DbBackend::Postgres => usize::MAX,
            _ => MAX_PARAMETERS / columns.max(1),
        }
    }

    /// [`rows`] for this database.
    pub(crate) fn rows(&self, first: usize, given: Vec<Vec<Value>>) -> (String, Vec<Value>) {
        rows(self.backend(), first, given)
    }

    /// What follows an expression that is to be one of a list, and its parameters, of which the first is number `first`. A plan for it looks each value up by an
    /// index, whatever PostgreSQL has last seen of the table; with [`ReadTx::list`] a table that was small then would be read whole.
    pub(crate) fn any_of<V: Into<Value>>(
        &self,
        first: usize,
        list: impl IntoIterator<Item = V>,
    ) -> (String, Vec<Value>) {
        let (rows, values) = self.list(first, list);
        match self.backend() {
            DbBackend::Postgres => (format!("= ANY (${first})"), values),
            _ => (format!("IN ({rows})"), values),
        }
    }

    /// [`ReadTx::rows`] of one column.
    pub(crate) fn list<V: Into<Value>>(
        &self,
        first: usize,
        list: impl IntoIterator<Item = V>,
    ) -> (String, Vec<Value>) {
        self.rows(first, list.into_iter().map(|value| vec![value.into()]).collect())
    }
}

/// Rows as a subselect, to follow `IN (…)`, `WITH name (columns) AS (…)` or `INSERT INTO table (columns)`; and its parameters,
/// of which the first is number `first`. On PostgreSQL more tables can follow it.
///
/// There is at least one row, all have values of the same kinds, and there are no more than
/// [`ReadTx::rows_a_statement`].
pub(crate) fn rows(backend: DbBackend, first: usize, rows: Vec<Vec<Value>>) -> (String, Vec<Value>) {
    match backend {
        DbBackend::Postgres => unnest(first, rows),
        _ => (values(first, &rows), rows.into_iter().flatten().collect()),
    }
}

fn values(first: usize, rows: &[Vec<Value>]) -> String {
    let mut sql = "VALUES ".to_owned();
    let mut parameter = first;
    for (index, row) in rows.iter().enumerate() {
        sql.push_str(if index == 0 { "(" } else { ", (" });
        for column in 0..row.len() {
            sql.push_str(if column == 0 { "$" } else { ", $" });
            sql.push_str(&parameter.to_string());
            parameter += 1;
        }
        sql.push(')');
    }
    sql
}

fn unnest(first: usize, rows: Vec<Vec<Value>>) -> (String, Vec<Value>) {
    let width = rows.first().map_or(0, Vec::len);
    let mut columns: Vec<Vec<Value>> = (0..width).map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows {
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    }
    let (mut wanted, mut names, mut parameters) = (Vec::new(), Vec::new(), Vec::new());
    for (index, column) in columns.into_iter().enumerate() {
        // An array of sea-orm's has no NULL in it: another one says where they are.
        let nulls: Vec<Value> = column.iter().map(|value| Value::from(value == &value.as_null())).collect();
        if nulls.contains(&Value::from(true)) {
            wanted.push(format!("CASE WHEN n{index} THEN NULL ELSE c{index} END"));
            names.extend([format!("c{index}"), format!("n{index}")]);
            let filled = column.into_iter().map(|value| match value == value.as_null() {
                true => value.dummy_value(),
                false => value,
            });
            parameters.extend([array(filled.collect()), array(nulls)]);
        } else {
            wanted.push(format!("c{index}"));
            names.push(format!("c{index}"));
            parameters.push(array(column));
        }
    }
    let places: Vec<String> = (first..first + parameters.len()).map(|number| format!("${number}")).collect();
    let sql = format!(
        "SELECT {} FROM UNNEST({}) AS given ({})",
        wanted.join(", "),
        places.join(", "),
        names.join(", ")
    );
    (sql, parameters)
}

/// Rows as one array a column, for the parameters of a function. What is absent is an empty text, or zero.
pub(crate) fn columns(kinds: &[ArrayType], rows: Vec<Vec<Value>>) -> Vec<Value> {
    let mut columns: Vec<Vec<Value>> = kinds.iter().map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows {
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(if value == value.as_null() { value.dummy_value() } else { value });
        }
    }
    kinds
        .iter()
        .zip(columns)
        .map(|(kind, column)| Value::Array(kind.clone(), Some(Box::new(column))))
        .collect()
}

fn array(values: Vec<Value>) -> Value {
    let kind = values.first().map_or(ArrayType::String, Value::array_type);
    Value::Array(kind, Some(Box::new(values)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_one_parameter_however_many_rows_there_are() {
        let row = |name: &str, number: i64| vec![Value::from(name), Value::from(number)];
        let (one, _) = unnest(3, vec![row("a", 1)]);
        let (two, parameters) = unnest(3, vec![row("a", 1), row("b", 2)]);
        assert_eq!(one, "SELECT c0, c1 FROM UNNEST($3, $4) AS given (c0, c1)");
        assert_eq!(one, two);
        assert_eq!(
            parameters,
            [array(vec!["a".into(), "b".into()]), array(vec![1_i64.into(), 2_i64.into()])]
        );
    }

    #[test]
    fn absent_values_stay_absent() {
        let rows = vec![vec![Value::from("a")], vec![Value::String(None)]];
        let (sql, parameters) = unnest(1, rows);
        assert_eq!(sql, "SELECT CASE WHEN n0 THEN NULL ELSE c0 END FROM UNNEST($1, $2) AS given (c0, n0)");
        assert_eq!(parameters, [array(vec!["a".into(), "".into()]), array(vec![false.into(), true.into()])]);
    }

    #[test]
    fn columns_have_their_kinds_without_rows_and_empty_values_for_absent_ones() {
        let kinds = &[ArrayType::String, ArrayType::BigInt];
        let rows = vec![vec![Value::String(None), 1_i64.into()], vec!["b".into(), 2_i64.into()]];
        assert_eq!(
            columns(kinds, rows),
            [array(vec!["".into(), "b".into()]), array(vec![1_i64.into(), 2_i64.into()])]
        );
        let empty = |kind: &ArrayType| Value::Array(kind.clone(), Some(Box::default()));
        assert_eq!(columns(kinds, Vec::new()), kinds.iter().map(empty).collect::<Vec<_>>());
    }

    #[test]
    fn without_arrays_each_value_is_a_parameter() {
        let rows = [vec![Value::from("a"), Value::from(1)], vec![Value::from("b"), Value::from(2)]];
        assert_eq!(values(2, &rows), "VALUES ($2, $3), ($4, $5)");
    }
}
