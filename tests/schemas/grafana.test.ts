/** deploy/grafana/amesh-relay.json, by Grafana's own types of a dashboard, of a panel's options and of a query. */
import { expect, test } from 'bun:test';
import { describeWithTools, read, typeErrors } from './support.ts';

interface Panel {
  type: string;
  options: object;
  fieldConfig: { defaults: { custom?: object } };
  targets: object[];
}

const text = await read('deploy/grafana/amesh-relay.json');
const { panels } = JSON.parse(text) as { panels: Panel[] };

// The package does not export these by name.
const raw = './node_modules/@grafana/schema/dist/types/raw';
const program = (dashboard: string): string => `
  import type { AnnotationQuery, Dashboard, Panel, VariableModel } from '${raw}/dashboard/x/types.gen.d.ts';
  import type { DataQuery, GraphFieldConfig } from '@grafana/schema';
  import type { Options as stat } from '${raw}/composable/stat/panelcfg/x/types.gen.d.ts';
  import type { Options as timeseries } from '${raw}/composable/timeseries/panelcfg/x/types.gen.d.ts';
  // A JSON file has the words where these types have enums.
  type Json<T> = T extends string ? \`\${T}\` : T extends (infer U)[] ? Json<U>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
  type Target = DataQuery & { expr: string; legendFormat: string; instant?: boolean; range?: boolean };
  export const dashboard: Json<Omit<Dashboard, 'panels' | 'annotations'> & {
    panels: Panel[];
    annotations: { list: (AnnotationQuery & { expr: string; titleFormat: string })[] };
  }> = ${dashboard};
  ${panels
    .map(
      ({ type, options, fieldConfig, targets }, index) => `
        export const options${index}: Json<${type}> = ${JSON.stringify(options)};
        export const custom${index}: Json<GraphFieldConfig> = ${JSON.stringify(fieldConfig.defaults.custom ?? {})};
        export const targets${index}: Json<Target>[] = ${JSON.stringify(targets)};`,
    )
    .join('')}`;

describeWithTools('Grafana', () => {
  test('the dashboard is one', async () => {
    expect(await typeErrors(program(text))).toBe('');
  }, 20_000);

  test('a misspelt field is told', async () => {
    expect(await typeErrors(program(text.replace('"gridPos"', '"gridpos"')))).toContain('gridpos');
  }, 20_000);
});
