import { z } from 'zod';
import { consumerKeys, consumersSection } from './consumers.js';
import { keyDocs, type KeyDocs } from './leaves.js';
import { settings } from './schema.js';

/** One key of the configuration: `relay.maxInFlight`, also `WAYBILL_RELAY_MAX_IN_FLIGHT`. */
export interface Key extends KeyDocs {
  path: readonly string[];
  name: string;
  environmentName: string;
}

/** Stands for the name of a consumer in the path of its keys. */
const NAME = '<name>';

/** Every key, in the order of the schema. */
export const keys: readonly Key[] = leavesOf(settings, []);

/** The path with the placeholder in the place of a consumer's name, as the keys have it. */
export function generalPath(path: readonly string[]): string[] {
  return path.map((part, index) => (index === 1 && path[0] === 'consumers' ? NAME : part));
}

/** The keys, those of consumers once for each of these names. */
export function keysFor(consumers: readonly string[]): Key[] {
  return keys.flatMap((key) => {
    if (key.path[1] !== NAME) return [key];
    return consumers.map((name) => {
      const path = key.path.map((part, index) => (index === 1 ? name : part));
      return { ...key, path, name: path.join('.'), environmentName: environmentName(path) };
    });
  });
}

export const keyByName: ReadonlyMap<string, Key> = new Map(keys.map((key) => [key.name, key]));

/** The names of the sections, `relay` and `relay.onUnroutable` among them. */
export const sectionNames: ReadonlySet<string> = new Set(
  keys.flatMap(({ path }) => path.slice(0, -1).map((_, index) => path.slice(0, index + 1).join('.'))),
);

/** `relay.maxInFlight` as an environment variable. */
export function environmentName(path: readonly string[]): string {
  const words = path.map((part) => part.replaceAll(/(?<=[a-z0-9])(?=[A-Z])|-/g, '_').toUpperCase());
  return ['WAYBILL', ...words].join('_');
}

function leavesOf(schema: z.core.$ZodType, path: readonly string[]): Key[] {
  const docs = keyDocs(schema);
  if (docs) return [{ ...docs, path, name: path.join('.'), environmentName: environmentName(path) }];
  if (schema === consumersSection) return leavesOf(consumerKeys, [...path, NAME]);
  if (schema instanceof z.ZodPrefault) return leavesOf(schema.unwrap(), path);
  if (schema instanceof z.ZodObject) {
    const shape: Readonly<Record<string, z.core.$ZodType>> = schema.shape;
    return Object.entries(shape).flatMap(([part, child]) => leavesOf(child, [...path, part]));
  }
  throw new TypeError(`the schema has something undocumented at ${path.join('.')}`);
}
