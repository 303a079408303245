import { expect, test } from 'vitest';
import { lineAt, splitStatements } from '../../../src/postgres/sql-text.js';

test('statements end at semicolons of their own, and know their line', () => {
  const sql = `-- head; not a statement
begin;

-- why
create function f() returns text language sql as $$
  select 'a;b'; -- c;d
$$;
comment on function f() is 'it''s; fine'; select "x;y", $tag$ $$ ; $tag$ /* ; */
;
commit`;
  expect(splitStatements(sql).map(({ line, text }) => [line, text.split('\n')[0]])).toEqual([
    [2, 'begin'],
    [5, 'create function f() returns text language sql as $$'],
    [8, `comment on function f() is 'it''s; fine'`],
    [8, 'select "x;y", $tag$ $$ ; $tag$ /* ; */'],
    [10, 'commit'],
  ]);
});

test('an empty file has no statements', () => {
  expect(splitStatements('\n-- nothing;\n ;\n')).toEqual([]);
});

test('lines count from 1', () => {
  expect(lineAt('a\nb', 0)).toBe(1);
  expect(lineAt('a\nb', 2)).toBe(2);
});
