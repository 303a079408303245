/** What moves a terminal's cursor, rings, or turns the direction of what follows. A line's end is none of these. */
const UNSEEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
/** What of that JSON writes as it is. */
const UNSEEN_IN_JSON = /[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** The text with such signs replaced. */
export function printable(text: string): string {
  return text.replaceAll(UNSEEN, '\u{fffd}');
}

/** The text with such signs as escapes, which mean the same in JSON. */
export function escaped(text: string): string {
  return text.replaceAll(UNSEEN_IN_JSON, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** A line of JSON whose texts may stand on a terminal. */
export function printableJson(line: string): string {
  return JSON.stringify(JSON.parse(line), (_, value: unknown) =>
    typeof value === 'string' ? printable(value) : value,
  );
}
