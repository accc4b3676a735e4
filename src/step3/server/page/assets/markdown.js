// A small part of Markdown, made into elements: fenced code, headings, lists, quotes, tables, emphasis, links.
// The text is a model's: it becomes text nodes only, and links lead nowhere but to http and https.
import { copyButton, element } from "./dom.js";

const LONGEST_INLINE = 20_000;
const FENCE = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]{0,40})/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\(([^()\s]+)\)|\b(https?:\/\/[^\s<>"')\]]+)/g;

/** Shows `text` in `place`; blocks that did not change since the last call keep their elements. */
export function showMarkdown(place, text) {
  const blocks = splitBlocks(text);
  const shown = place.markdownBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < shown.length && blocks[same].source === shown[same]) same += 1;
  while (place.childNodes.length > same) place.lastChild.remove();
  for (const block of blocks.slice(same)) place.append(block.make());
  place.markdownBlocks = blocks.map((block) => block.source);
}

function splitBlocks(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const start = at;
    const [end, make] = readBlock(lines, at);
    at = end;
    blocks.push({ source: lines.slice(start, end).join("\n"), make });
  }
  return blocks;
}

function readBlock(lines, start) {
  const fence = FENCE.exec(lines[start]);
  if (fence) return readCode(lines, start, fence);
  if (RULE.test(lines[start])) return [start + 1, () => element("hr")];
  const heading = HEADING.exec(lines[start]);
  if (heading) {
    const level = Math.min(6, heading[1].length + 2);
    return [start + 1, () => inlineInto(element(`h${level}`), heading[2])];
  }
  if (ITEM.test(lines[start])) return readList(lines, start);
  if (lines[start].startsWith(">")) {
    const end = endOf(lines, start, (line) => line.startsWith(">"));
    const inner = lines.slice(start, end).map((line) => line.replace(/^>\s?/, "")).join("\n");
    return [end, () => inlineInto(element("blockquote"), inner)];
  }
  if (lines[start].includes("|") && start + 1 < lines.length && TABLE_RULE.test(lines[start + 1])) {
    const end = endOf(lines, start, (line) => line.includes("|"));
    return [end, () => table(lines.slice(start, end))];
  }
  const end = endOf(lines, start + 1, (line) => line.trim() && !FENCE.test(line) && !ITEM.test(line) && !HEADING.test(line));
  return [end, () => inlineInto(element("p"), lines.slice(start, end).join("\n"))];
}

function endOf(lines, start, belongs) {
  let end = start;
  while (end < lines.length && belongs(lines[end])) end += 1;
  return end;
}

function readCode(lines, start, fence) {
  const closes = (line) => line.trim().startsWith(fence[1]) && !line.trim().slice(fence[1].length).trim();
  let end = start + 1;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const code = lines.slice(start + 1, end).join("\n");
  const make = () =>
    element(
      "figure",
      { class: "code" },
      element("figcaption", {}, fence[2] || "code", copyButton("Copy the code", () => code)),
      element("pre", { tabIndex: 0 }, element("code", {}, code)),
    );
  return [Math.min(end + 1, lines.length), make];
}

function readList(lines, start) {
  const end = endOf(lines, start, (line) => ITEM.test(line) || /^\s{2,}\S/.test(line));
  const make = () => {
    const ordered = /\d/.test(ITEM.exec(lines[start])[2]);
    const list = element(ordered ? "ol" : "ul");
    if (ordered) list.start = parseInt(ITEM.exec(lines[start])[2], 10);
    for (const line of lines.slice(start, end)) {
      const item = ITEM.exec(line);
      if (!item) inlineInto(list.lastChild, `\n${line.trim()}`);
      else if (item[1].length >= 2 && list.lastChild) {
        let nested = list.lastChild.lastElementChild;
        if (!nested || !/^[UO]L$/.test(nested.tagName)) {
          nested = element(/\d/.test(item[2]) ? "ol" : "ul");
          list.lastChild.append(nested);
        }
        nested.append(inlineInto(element("li"), item[3]));
      } else list.append(inlineInto(element("li"), item[3]));
    }
    return list;
  };
  return [end, make];
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|");
  const row = (line, tag) => element("tr", {}, ...cells(line).map((cell) => inlineInto(element(tag), cell.trim())));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return element(
    "div",
    { class: "table", tabIndex: 0 },
    element("table", {}, element("thead", {}, row(lines[0], "th")), element("tbody", {}, ...body)),
  );
}

function inlineInto(place, text) {
  if (text.length > LONGEST_INLINE) {
    place.append(text);
    return place;
  }
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    place.append(text.slice(at, match.index));
    at = match.index + match[0].length;
    const [whole, code, strong, emphasis, label, target, bare] = match;
    if (code !== undefined) place.append(element("code", {}, code));
    else if (strong !== undefined) place.append(element("strong", {}, strong));
    else if (emphasis !== undefined) place.append(element("em", {}, emphasis));
    else if (bare !== undefined) place.append(link(bare, bare));
    else place.append(/^https?:\/\//.test(target) ? link(target, label) : whole);
  }
  place.append(text.slice(at));
  return place;
}

function link(target, label) {
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" }, label);
}
