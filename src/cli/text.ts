export { printable } from '../telemetry/visible.js';

/** Two columns, the first as wide as its widest cell; nothing is cut or wrapped. */
export function aligned(rows: readonly (readonly [label: string, value: string])[], indent = ''): string {
  const width = Math.max(0, ...rows.map(([label]) => label.length));
  return rows.map(([label, value]) => `${indent}${label.padEnd(width)}  ${value}`.trimEnd()).join('\n');
}

/** Columns as wide as their widest cell, two blanks apart. */
export function columns(rows: readonly (readonly string[])[], indent = ''): string {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, index) => (widths[index] = Math.max(widths[index] ?? 0, cell.length)));
  return rows
    .map(
      (row) =>
        indent +
        row
          .map((cell, index) => cell.padEnd(widths[index] ?? 0))
          .join('  ')
          .trimEnd(),
    )
    .join('\n');
}

/** `812 B`, `1.4 MiB`: bytes as one says them. */
export function spokenBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let amount = bytes;
  let unit = 0;
  while (Math.abs(amount) >= 1024 && unit < units.length - 1) {
    amount /= 1024;
    unit++;
  }
  return unit === 0 ? `${amount} B` : `${amount.toFixed(1)} ${units[unit] ?? ''}`;
}

/** `12,345`. */
export function spokenCount(count: number): string {
  return count.toLocaleString('en-US');
}

/**
 * Lines of at most `width` signs, broken between words, all but the first behind `indent`; a longer word stands alone.
 * What is in backticks is a word: a command is to be copied.
 */
export function wrapped(text: string, width: number, indent = ''): string[] {
  const lines: string[] = [];
  let line = '';
  const pairs = text.split('`').length % 2 === 1;
  for (const word of text.split(pairs ? / (?=(?:[^`]*`[^`]*`)*[^`]*$)/ : ' ')) {
    if (line.trim() !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = indent + word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, line];
}
