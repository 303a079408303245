/** `1 row`, `2 rows`, `1,234 rows`; `many`: where an s does not make it so. */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count.toLocaleString('en-US')} ${count === 1 ? one : many}`;
}
