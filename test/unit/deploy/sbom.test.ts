import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

interface Bom {
  bomFormat: string;
  components: { name: string; properties?: { name: string }[] }[];
}

test('`npm sbom`, as the README has it, tells every package that Waybill needs, apart from those of its tests', async () => {
  const readme = readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');
  const [, args = ''] = /`npm (sbom [^`]+)`/.exec(readme) ?? [];
  const { stdout } = await promisify(execFile)('npm', args.split(' '), { maxBuffer: 64 * 2 ** 20 });
  const { bomFormat, components } = JSON.parse(stdout) as Bom;
  expect(bomFormat).toBe('CycloneDX');
  const isForDevelopment = ({ properties = [] }: Bom['components'][number]): boolean =>
    properties.some(({ name }) => name === 'cdx:npm:package:development');
  const names = components.filter((component) => !isForDevelopment(component)).map(({ name }) => name);
  const { dependencies } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
    dependencies: Record<string, string>;
  };
  expect(names).toEqual(expect.arrayContaining(Object.keys(dependencies)));
  expect(names).not.toContain('vitest');
}, 60_000);
