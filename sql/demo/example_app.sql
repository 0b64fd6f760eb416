-- The example application's tables, as Prisma creates them: quoted names in mixed case, columns in camelCase,
-- identifiers made by the application, "updatedAt" written by the application.

create type "SceneStatus" as enum ('DRAFT', 'RENDERING', 'READY', 'FAILED');

create table "Story" (
  "id" uuid not null,
  "title" text not null,
  "authorEmail" text,
  "isPublic" boolean not null default false,
  "tags" text[],
  "settings" jsonb not null default '{}',
  "createdAt" timestamptz(3) not null default current_timestamp,
  "updatedAt" timestamptz(3) not null,
  constraint "Story_pkey" primary key ("id")
);

create table "Scenario" (
  "id" text not null,
  "storyId" uuid not null,
  "position" integer not null,
  "summary" text not null,
  "status" "SceneStatus" not null default 'DRAFT',
  "createdAt" timestamptz(3) not null default current_timestamp,
  "updatedAt" timestamptz(3) not null,
  constraint "Scenario_pkey" primary key ("id"),
  constraint "Scenario_storyId_fkey" foreign key ("storyId") references "Story" ("id")
    on delete cascade on update cascade
);

create table "Prompt" (
  "id" text not null,
  "scenarioId" text not null,
  "body" text not null,
  "parameters" jsonb,
  "tokenCount" bigint,
  "costUsd" numeric(12, 6),
  "createdAt" timestamptz(3) not null default current_timestamp,
  constraint "Prompt_pkey" primary key ("id"),
  constraint "Prompt_scenarioId_fkey" foreign key ("scenarioId") references "Scenario" ("id")
    on delete cascade on update cascade
);

create table "VideoAsset" (
  "id" uuid not null,
  "scenarioId" text not null,
  "promptId" text,
  "url" text,
  "durationSeconds" double precision,
  "checksum" bytea,
  "renderedAt" timestamptz(3),
  constraint "VideoAsset_pkey" primary key ("id"),
  constraint "VideoAsset_scenarioId_fkey" foreign key ("scenarioId") references "Scenario" ("id")
    on delete restrict on update cascade,
  constraint "VideoAsset_promptId_fkey" foreign key ("promptId") references "Prompt" ("id")
    on delete set null on update cascade
);

create unique index "Scenario_storyId_position_key" on "Scenario" ("storyId", "position");
create index "Prompt_scenarioId_idx" on "Prompt" ("scenarioId");
create index "VideoAsset_scenarioId_idx" on "VideoAsset" ("scenarioId");
