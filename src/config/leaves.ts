import { z } from 'zod';
import type { Rate } from '../core/token-bucket.js';
import { formatDuration, formatSize, parseDuration, parseRate, parseSize, type Parsed } from './quantities.js';

/** What the reference, the environment reader and the problem texts know of one key. */
export interface KeyDocs {
  doc: string;
  kind:
    | 'url'
    | 'text'
    | 'name'
    | 'file'
    | 'command'
    | 'list'
    | 'flag'
    | 'choice'
    | 'integer'
    | 'duration'
    | 'size'
    | 'rate';
  values: string;
  /** As a person would write it; undefined when the key has no default. */
  default: string | undefined;
  required: boolean;
  /** Its value never appears in a message. */
  secret: boolean;
}

const docsOf = new WeakMap<object, KeyDocs>();

/** The documentation of a leaf schema, or undefined for anything else. */
export function keyDocs(schema: object): KeyDocs | undefined {
  return docsOf.get(schema);
}

type Parse<T> = (raw: unknown) => Parsed<T>;

function leaf<T>(parse: Parse<T>, docs: KeyDocs) {
  const schema = z
    .unknown()
    .optional()
    .transform((raw, context): T => {
      const parsed = parse(raw ?? undefined);
      if ('value' in parsed) return parsed.value;
      context.issues.push({
        code: 'custom',
        input: raw,
        message: parsed.problem,
        params: { mend: parsed.mend },
      });
      return z.NEVER;
    });
  docsOf.set(schema, docs);
  return schema;
}

function orDefault<T>(fallback: T, parse: Parse<T>): Parse<T> {
  return (raw) => (raw === undefined ? { value: fallback } : parse(raw));
}

interface Range {
  min: string;
  max: string;
}

/** A duration with its default and bounds in the units a person writes; milliseconds come out. */
export function duration(fallback: string, { min, max }: Range, doc: string) {
  const read = (text: string) => literal(parseDuration(text));
  const parse = bounded(parseDuration, read(min), read(max), formatDuration);
  return leaf(orDefault(read(fallback), parse), {
    doc,
    kind: 'duration',
    values: `${min} to ${max}`,
    default: fallback,
    required: false,
    secret: false,
  });
}

/** A size with its default and bounds in the units a person writes; bytes come out. */
export function size(fallback: string, { min, max }: Range, doc: string) {
  const read = (text: string) => literal(parseSize(text));
  const parse = bounded(parseSize, read(min), read(max), formatSize);
  return leaf(orDefault(read(fallback), parse), {
    doc,
    kind: 'size',
    values: `${min} to ${max}`,
    default: fallback,
    required: false,
    secret: false,
  });
}

/** A whole number within bounds. */
export function integer(fallback: number, min: number, max: number, doc: string) {
  const parse: Parse<number> = (raw) =>
    typeof raw === 'number' && Number.isInteger(raw)
      ? { value: raw }
      : { problem: 'is not a whole number', mend: `write a number from ${min} to ${max}` };
  return leaf(orDefault(fallback, bounded(parse, min, max, String)), {
    doc,
    kind: 'integer',
    values: `${min} to ${max}`,
    default: String(fallback),
    required: false,
    secret: false,
  });
}

/** One word of a list. */
export function choice<const T extends readonly [string, ...string[]]>(values: T, fallback: T[number], doc: string) {
  return leaf<T[number]>(orDefault<T[number]>(fallback, oneOf(values)), {
    doc,
    kind: 'choice',
    values: values.join(', '),
    default: fallback,
    required: false,
    secret: false,
  });
}

/** One word of a list, or nothing: `without` says what then holds. */
export function optionalChoice<const T extends readonly [string, ...string[]]>(
  values: T,
  { without }: { without: string },
  doc: string,
) {
  return leaf<T[number] | undefined>(orDefault<T[number] | undefined>(undefined, oneOf(values)), {
    doc,
    kind: 'choice',
    values: values.join(', '),
    default: without,
    required: false,
    secret: false,
  });
}

/** A text that `check` accepts as it stands. */
export function text(fallback: string, check: Parse<string>, docs: Pick<KeyDocs, 'doc' | 'kind' | 'values'>) {
  return leaf(orDefault(fallback, check), { ...docs, default: fallback, required: false, secret: false });
}

/** The path of a file; it is read when it is used, so that a rotated file is seen. */
export function filePath(doc: string) {
  const parse: Parse<string | undefined> = (raw) =>
    typeof raw === 'string' && raw.trim() !== ''
      ? { value: raw }
      : { problem: 'is not a path', mend: 'give a file path' };
  return leaf(orDefault<string | undefined>(undefined, parse), {
    doc,
    kind: 'file',
    values: 'path',
    default: undefined,
    required: false,
    secret: false,
  });
}

/** A program and its arguments, which is run without a shell; in the environment a JSON array. */
export function command(doc: string) {
  const example = '["program", "argument"]';
  const parse: Parse<readonly [string, ...string[]] | undefined> = (raw) => {
    const [program, ...rest] = (Array.isArray(raw) ? raw : []) as unknown[];
    const isText = (part: unknown): part is string => typeof part === 'string' && !part.includes('\0');
    if (isText(program) && program.trim() !== '' && rest.every(isText)) return { value: [program, ...rest] };
    return { problem: 'is not a list of a program and its arguments', mend: `write it like ${example}` };
  };
  return leaf(orDefault<readonly [string, ...string[]] | undefined>(undefined, parse), {
    doc,
    kind: 'command',
    values: example,
    default: undefined,
    required: false,
    secret: true,
  });
}

/** A URL that may hold a password; `check` must not repeat it. */
export function url(check: Parse<string>, { values, doc }: Pick<KeyDocs, 'values' | 'doc'>) {
  const parse: Parse<string> = (raw) =>
    raw === undefined ? { problem: 'is missing', mend: `give a URL such as ${values}` } : check(raw);
  return leaf(parse, { doc, kind: 'url', values, default: undefined, required: true, secret: true });
}

/** A URL that may be left out. */
export function optionalUrl(check: Parse<string>, { values, doc }: Pick<KeyDocs, 'values' | 'doc'>, without: string) {
  return leaf<string | undefined>(orDefault<string | undefined>(undefined, check), {
    doc,
    kind: 'url',
    values,
    default: without,
    required: false,
    secret: true,
  });
}

/** A list whose items `check` reads; `fallback` as a person would write it. In the environment a JSON array. */
export function list<T>(
  check: Parse<T>,
  { values, doc, fallback = [] }: Pick<KeyDocs, 'values' | 'doc'> & { fallback?: readonly unknown[] },
) {
  const parse: Parse<readonly T[]> = (raw) => {
    if (!Array.isArray(raw)) return { problem: 'is not a list', mend: `write it like ${values}` };
    const items: T[] = [];
    for (const item of raw) {
      const parsed = check(item);
      if ('problem' in parsed) return parsed;
      items.push(parsed.value);
    }
    return { value: items };
  };
  return leaf(orDefault<readonly T[]>(literal(parse(fallback)), parse), {
    doc,
    kind: 'list',
    values,
    default: fallback.length === 0 ? 'none' : JSON.stringify(fallback),
    required: false,
    secret: false,
  });
}

/** Yes or no. */
export function flag(fallback: boolean, doc: string) {
  const parse: Parse<boolean> = (raw) =>
    typeof raw === 'boolean' ? { value: raw } : { problem: 'is neither true nor false', mend: 'write true or false' };
  return leaf(orDefault(fallback, parse), {
    doc,
    kind: 'flag',
    values: 'true, false',
    default: String(fallback),
    required: false,
    secret: false,
  });
}

/** So many in a time, such as `50/s`; undefined without it. */
export function optionalRate({ without }: { without: string }, doc: string) {
  return leaf(orDefault<Rate | undefined>(undefined, parseRate), {
    doc,
    kind: 'rate',
    values: '50/s, 600/m, 10000/h',
    default: without,
    required: false,
    secret: false,
  });
}

function oneOf<const T extends readonly [string, ...string[]]>(values: T): Parse<T[number]> {
  return (raw) => {
    const found = values.find((value) => value === raw);
    if (found !== undefined) return { value: found };
    return { problem: 'is none of the known words', mend: `write one of ${values.join(', ')}` };
  };
}

function bounded(parse: Parse<number>, min: number, max: number, show: (value: number) => string): Parse<number> {
  return (raw) => {
    const parsed = parse(raw);
    if (!('value' in parsed)) return parsed;
    if (parsed.value < min) return { problem: `${show(parsed.value)} is too small`, mend: `at least ${show(min)}` };
    if (parsed.value > max) return { problem: `${show(parsed.value)} is too large`, mend: `at most ${show(max)}` };
    return parsed;
  };
}

function literal<T>(parsed: Parsed<T>): T {
  if ('value' in parsed) return parsed.value;
  throw new TypeError(`a default or bound in the schema ${parsed.problem}`);
}
