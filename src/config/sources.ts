import { isMap, LineCounter, parseDocument } from 'yaml';
import { generalPath, keyByName, keysFor, sectionNames, type Key } from './keys.js';
import { nearestName, type ConfigProblem } from './problems.js';

/** A tree of raw values as the file has them. */
export interface RawTree {
  [key: string]: unknown;
}

/** The variables that are not keys: the file's place, and who calls the program. */
const OTHER_NAMES = new Set(['WAYBILL_CONFIG', 'WAYBILL_OPERATOR']);

/** Reads YAML (JSON is a part of it). The parser's own messages quote the text, so only code and place are told. */
export function parseFile(fileText: string, fileName: string, problems: ConfigProblem[]): RawTree {
  const lines = new LineCounter();
  const document = parseDocument(fileText, { prettyErrors: false, lineCounter: lines });
  for (const error of document.errors) {
    const { line, col } = lines.linePos(error.pos[0]);
    problems.push({
      at: fileName,
      problem: `is not valid YAML at line ${line}, column ${col} (${error.code.toLowerCase().replaceAll('_', ' ')})`,
      mend: 'correct that place',
    });
  }
  if (document.errors.length > 0 || document.contents === null) return {};
  if (!isMap(document.contents)) {
    problems.push({ at: fileName, problem: 'holds no keys', mend: 'begin with "database:" and "broker:"' });
    return {};
  }
  try {
    return copyTree(document.toJS({ maxAliasCount: 20 }) as RawTree);
  } catch {
    problems.push({ at: fileName, problem: 'has an alias that leads nowhere', mend: 'take aliases out' });
    return {};
  }
}

/** Sections become fresh objects without a prototype, and an empty section is a section. */
function copyTree(tree: RawTree, path: string[] = []): RawTree {
  const copy = Object.create(null) as RawTree;
  for (const [part, value] of Object.entries(tree)) {
    const here = [...path, part];
    const isSection = sectionNames.has(generalPath(here).join('.'));
    if (isSection && value === null) copy[part] = Object.create(null);
    else if (isSection && isTree(value)) copy[part] = copyTree(value, here);
    else copy[part] = value;
  }
  return copy;
}

function isTree(value: unknown): value is RawTree {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export interface Environment {
  readonly [name: string]: string | undefined;
}

/** Where a key's value came from when it was not the file, by key name. */
export type Origins = Map<string, string>;

/** Lays the environment over the file's values; an empty variable counts as not set. */
export function applyEnvironment(
  tree: RawTree,
  environment: Environment,
  readFile: (path: string) => string,
  problems: ConfigProblem[],
): Origins {
  const origins: Origins = new Map();
  const known = new Set(OTHER_NAMES);
  for (const key of keysFor(consumerNames(tree))) {
    const plain = key.environmentName;
    const file = `${plain}_FILE`;
    if (known.has(plain) && (environment[plain] || environment[file])) {
      problems.push({
        at: plain,
        problem: 'stands for keys of two consumers, whose names differ in - and _ only',
        mend: 'rename one of them, or keep the key in the file',
      });
      continue;
    }
    known.add(plain).add(file);
    const text = environment[plain];
    const path = environment[file];
    if (text && path) {
      origins.set(key.name, plain);
      problems.push({ at: plain, problem: `and ${file} are both set`, mend: 'keep one of them' });
    } else if (path) {
      const content = readSecret(file, path, readFile, problems);
      origins.set(key.name, file);
      if (content !== undefined) place(tree, key, content, plain, problems);
    } else if (text) {
      origins.set(key.name, plain);
      place(tree, key, text, plain, problems);
    }
  }
  for (const name of Object.keys(environment)) {
    if (!name.startsWith('WAYBILL_') || known.has(name) || isForeign(name, environment[name] ?? '')) continue;
    const meant = nearestName(name, known);
    problems.push({
      at: name,
      problem: 'is no key of Waybill',
      mend: meant === undefined ? 'take it out of the environment' : `${meant} is probably meant`,
    });
  }
  return origins;
}

/**
 * The names of the configured consumers. Why only the file's: where a name ends and a key begins cannot be told from a
 * variable's name.
 */
export function consumerNames(tree: RawTree): string[] {
  const section = tree['consumers'];
  return isTree(section) ? Object.keys(section) : [];
}

function readSecret(
  variable: string,
  path: string,
  readFile: (path: string) => string,
  problems: ConfigProblem[],
): string | undefined {
  try {
    const content = readFile(path).replace(/\r?\n$/, '');
    if (content !== '') return content;
    problems.push({ at: variable, problem: 'names an empty file', mend: 'put the value into that file' });
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unreadable';
    problems.push({
      at: variable,
      problem: `names a file that cannot be read (${code})`,
      mend: 'check the path and the rights of the user that runs Waybill',
    });
  }
  return undefined;
}

function place(tree: RawTree, key: Key, text: string, variable: string, problems: ConfigProblem[]): void {
  let section = tree;
  for (const part of key.path.slice(0, -1)) {
    section[part] ??= Object.create(null);
    const next = section[part];
    if (!isTree(next)) {
      problems.push({
        at: variable,
        problem: 'is inside of what the file gives one value',
        mend: 'mend the file first',
      });
      return;
    }
    section = next;
  }
  section[key.path.at(-1) ?? ''] = valueOf(key, text);
}

/** What a text stands for; what it cannot stand for is left to the schema's check. */
function valueOf(key: Key, text: string): unknown {
  if (key.kind === 'integer' && /^\d+$/.test(text.trim())) return Number(text);
  if (key.kind === 'flag') return text === 'true' ? true : text === 'false' ? false : text;
  if (key.kind !== 'command' && key.kind !== 'list') return text;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

/**
 * Names that others put into the environment: Kubernetes describes a Service called waybill by variables of its own,
 * and the tests have theirs.
 */
function isForeign(name: string, value: string): boolean {
  if (name.startsWith('WAYBILL_TEST_')) return true;
  if (/_SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?$/.test(name)) return true;
  if (/_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$/.test(name)) return true;
  return name.endsWith('_PORT') && /^(tcp|udp|sctp):\/\//.test(value);
}

/** The key that was probably meant by an unknown name of the file. */
export function nearestKey(path: readonly string[]): string | undefined {
  const last = path.at(-1) ?? '';
  const siblings = [...keyByName.keys(), ...sectionNames];
  const meant =
    nearestName(generalPath(path).join('.'), siblings) ??
    siblings.find((candidate) => candidate.split('.').at(-1)?.toLowerCase() === last.toLowerCase());
  return path[0] === 'consumers' ? meant?.replace('<name>', path[1] ?? '') : meant;
}
