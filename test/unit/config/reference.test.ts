import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { keys } from '../../../src/config/keys.js';
import { configReference } from '../../../src/config/reference.js';

it('deploy/configuration.md is what the schema says; refresh it with `waybill config reference`', () => {
  const written = readFileSync(new URL('../../../deploy/configuration.md', import.meta.url), 'utf8');
  expect(written).toBe(configReference());
});

it('every key is documented in whole sentences and its variable is its own', () => {
  expect(keys.length).toBeGreaterThan(30);
  expect(keys.filter(({ doc }) => !/^[a-zA-Z`'].{15,}\.$/.test(doc)).map(({ name }) => name)).toEqual([]);
  expect(new Set(keys.map(({ environmentName }) => environmentName)).size).toBe(keys.length);
});
