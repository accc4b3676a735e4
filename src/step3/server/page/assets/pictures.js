// Pictures from files, the clipboard and drops, as data: URLs that every server of this kind takes.

const LONGEST_SIDE = 3000;
const LARGEST_FILE = 6 << 20;
const SENT_AS_THEY_ARE = new Set(["image/png", "image/jpeg", "image/webp"]);

/** What is wrong with a file. */
export class PictureFault extends Error {}

/** A file as a data: URL; very large ones are made smaller, other formats become PNG. */
export async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new PictureFault(`${file.name || "This"} is not a picture that the browser can read.`);
  }
  try {
    const longest = Math.max(bitmap.width, bitmap.height);
    if (SENT_AS_THEY_ARE.has(file.type) && longest <= LONGEST_SIDE && file.size <= LARGEST_FILE) {
      return await dataUrl(file);
    }
    return redrawn(bitmap, Math.min(1, LONGEST_SIDE / longest), file.type === "image/jpeg" || file.size > LARGEST_FILE);
  } finally {
    bitmap.close();
  }
}

/** The files of a drop or of the clipboard that are pictures. */
export function pictureFiles(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
}

/** A picture of this page as a data: URL. */
export async function fetchPicture(path) {
  return dataUrl(await (await fetch(path)).blob());
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new PictureFault("The picture cannot be read."));
    reader.readAsDataURL(blob);
  });
}

function redrawn(bitmap, scale, asJpeg) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  if (asJpeg) {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return asJpeg ? canvas.toDataURL("image/jpeg", 0.92) : canvas.toDataURL("image/png");
}
