/** One entry of `accept`: a type and the versions of it that the consumer understands. */
export interface Acceptance {
  type: string;
  fromVersion: number;
  /** Infinity where the entry names no end. */
  toVersion: number;
}

/** A producer that gives no version means the first, as the outbox's column does. */
const IMPLIED_VERSION = 1;

/** Reads `order.paid`, `order.paid@2`, `order.paid@1-2` or `order.paid@2-`; undefined for anything else. */
export function parseAcceptance(text: string): Acceptance | undefined {
  const parts = /^([^@\s]{1,255})(?:@(\d{1,9})(?:(-)(\d{1,9})?)?)?$/.exec(text);
  const type = parts?.[1];
  if (!parts || type === undefined) return undefined;
  if (parts[2] === undefined) return { type, fromVersion: 0, toVersion: Infinity };
  const fromVersion = Number(parts[2]);
  const toVersion = parts[3] === undefined ? fromVersion : parts[4] === undefined ? Infinity : Number(parts[4]);
  return fromVersion <= toVersion ? { type, fromVersion, toVersion } : undefined;
}

/** Why a message is not for this consumer, or undefined when it is. An empty list accepts everything. */
export function refusal(
  accept: readonly Acceptance[],
  message: { type: string | null; schemaVersion: number | null },
): string | undefined {
  if (accept.length === 0) return undefined;
  const { type } = message;
  if (type === null) return 'it has no type, and the consumer accepts named types only';
  const ofType = accept.filter((each) => each.type === type);
  if (ofType.length === 0) return 'its type is not among those that the consumer accepts';
  const version = message.schemaVersion ?? IMPLIED_VERSION;
  if (ofType.some((each) => version >= each.fromVersion && version <= each.toVersion)) return undefined;
  return `version ${version} of its type is not among those that the consumer accepts`;
}
