/** Paths such as `relay.maxInFlight` and `consumers.0.queue` that somebody has read. */
export const readPaths = new Set<string>();

/**
 * The configuration, noting in readPaths which of its values are read. What is merely copied with its whole section (a
 * spread, JSON) counts as not read: otherwise a key that nobody uses would pass with its neighbours.
 */
export function watched<T extends object>(section: T, path = ''): T {
  const copied = new Set<PropertyKey>();
  const sections = new Map<PropertyKey, object>();
  return new Proxy(section, {
    getOwnPropertyDescriptor(target, key) {
      copied.add(key);
      return Reflect.getOwnPropertyDescriptor(target, key);
    },
    get(target, key) {
      const value: unknown = Reflect.get(target, key);
      if (typeof key === 'symbol' || typeof value === 'function') return value;
      const here = path === '' ? key : `${path}.${key}`;
      if (isSection(value) || here === 'consumers') {
        const known = sections.get(key) ?? watched(value as object, here);
        sections.set(key, known);
        return known;
      }
      if (!copied.delete(key)) readPaths.add(here);
      return value;
    },
  });
}

function isSection(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Every value of a configuration by its path; lists count as one value. */
export function leavesOf(section: object, path = ''): Map<string, string> {
  const leaves = new Map<string, string>();
  for (const [key, value] of Object.entries(section) as [string, unknown][]) {
    const here = path === '' ? key : `${path}.${key}`;
    if (isSection(value) || here === 'consumers') {
      for (const [at, text] of leavesOf(value as object, here)) leaves.set(at, text);
    } else leaves.set(here, value === undefined ? 'undefined' : JSON.stringify(value));
  }
  return leaves;
}
