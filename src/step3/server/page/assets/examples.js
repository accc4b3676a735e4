// Questions that the bundled model can answer, for a first click.
import { WEATHER_TOOL } from "./settings.js";

export const EXAMPLES = [
  { picture: "page/example_shapes.png", alt: "A red star, a purple ring, a green triangle and a yellow square", question: "Describe the picture." },
  { picture: "page/example_things.png", alt: "A blue ring, a red circle and two crosses", question: "How many things are there?" },
  { picture: "page/example_number.png", alt: "A printed number in blue", question: "Which number do you see?" },
  { picture: "page/example_yellow.png", alt: "A black circle, a black ring and a yellow cross", question: "Which shape is yellow?" },
  { icon: "sum", question: "What is 47 + 38?" },
  { icon: "tool", question: "What is the weather in Tokyo?", tools: [WEATHER_TOOL] },
];
